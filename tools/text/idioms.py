"""Expressions of chat templates: what Python and Jinja make of them. One line each; `m` is the list of messages."""

EXPRESSIONS = r"""
{{ m | tojson }}
{{ m | tojson(indent=2) }}
{{ m | tojson(indent='  ', sort_keys=true) }}
{{ {'b': 1, 'a': [1, 2.5, none, true], 1: 'x', none: 0, true: 1} | tojson }}
{{ {'b': 'é<&\'"', 'a': '\n\t\\\x01'} | tojson }}|{{ 'é😀\x7f' | tojson(ensure_ascii=true) }}
{{ {'b': {}, 'a': []} | tojson(indent=4, separators=(',', ': ')) }}{{ [1, 'a'] | tojson(separators=(',', ':')) }}
{{ [1.0, 1e20, 1e-7, 0.1, 123456789.125, 1e16, -0.0] }}{{ 1e16 }} {{ 3 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }}
{{ none }} {{ true }} {{ [none, true, 'a', "it's", 'q"', 'é\n'] }} {{ {'a': 1, 'b': [2]} }} {{ (1,) }} {{ (1, 'b') }} {{ () }} {{ [] }} {{ {} }}
{{ 'a' ~ none ~ 1.5 ~ [1] ~ true ~ missing }}
{{ '%s|%5s|%-5s|%05d|%+d|%x|%.2f|%e|%g|%%|%r|%c' % ('a', 'b', 'c', 42, 7, 255, 3.14159, 12345.678, 0.0001, 'r', 'z') }}
{{ '%(a)s-%(b)03d' % {'a': 1, 'b': 2} }} {{ '%s' % 'x' }} {{ '%s' % [1, 2] }} {{ '%d%%' % 3.9 }} {{ '%.3s|%10.2f|%-8d|' % ('abcdef', 2.5, 3) }}
{{ '{} {1}'.format(1, 2) if false else '{0} {1} {0}'.format('a', 'b') }} {{ '{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:,}|{:.2f}|{:x}|{:+d}'.format('a', 'b', 'c', 'd', 42, 1234567, 2.345, 255, 3) }}
{{ '{a.role} {b[0]} {{}} {c!r}'.format(a=m[0], b=[1], c='x') }} {{ '{:{w}}|'.format('a', w=4) }} {{ '{:.1%}'.format(0.256) }} {{ '{:g}'.format(1e10) }} {{ '{:_}'.format(1234567) }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ ' a  b c '.split(none, 1) }} {{ 'a b c'.rsplit(maxsplit=1) }} {{ 'a--b--c'.rsplit('--', 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ '  x y '.rsplit(none, 1) }}
{{ 'k: v: w'.partition(': ') }} {{ 'k: v: w'.rpartition(': ') }} {{ 'kv'.partition('x') }} {{ 'kv'.rpartition('x') }}
{{ 'xxhixx'.strip('x') }} {{ 'xyhi'.lstrip('yx') }} {{ 'hi..'.rstrip('.') }} {{ ' a '.strip() }}| {{ 'prefix-rest'.removeprefix('prefix-') }} {{ 'a.txt'.removesuffix('.txt') }} {{ 'a'.removeprefix('b') }}
{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'aaa' | replace('a', 'b', 1) }} {{ 'abc'.replace('', '-') }} {{ 'ab' | replace('a', 1) }}
{{ 'hello wORLD x-y'.title() }} {{ 'hello wORLD x-y' | title }} {{ "they're bill's" | title }} {{ "they're".title() }} {{ 'hELLO'.capitalize() }} {{ 'hELLO' | capitalize }} {{ 'ß'.upper() }} {{ 'ÀÉ'.lower() }} {{ 'aB'.swapcase() }} {{ 'ΑΣ'.lower() }}
{{ 'a1'.isalnum() }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ ''.isdigit() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab1'.islower() }} {{ 'Ab Cd'.istitle() }} {{ '½'.isnumeric() }} {{ '½'.isdigit() }} {{ 'é'.isascii() }}
{{ 'banana'.find('na') }} {{ 'banana'.rfind('na') }} {{ 'banana'.count('a') }} {{ 'x'.find('q') }} {{ 'banana'.index('n') }} {{ 'banana'.find('a', 2) }} {{ 'banana'.count('a', 2, 4) }} {{ 'éa'.find('a') }} {{ 'aa'.count('') }}
{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.startswith('') }} {{ 'abc'.endswith(('x', 'bc')) }}
{{ ', '.join(['a', 'b']) }} {{ '-'.join('abc') }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.center(4, '*') }} {{ 'ab'.center(5) }}| {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '.') }}
{{ 'hello'[1:3] }} {{ 'hello'[::-1] }} {{ 'hello'[-3:] }} {{ 'hello'[:-1] }} {{ 'hello'[::2] }} {{ 'hello'[10:] }}| {{ 'hello'[0] }} {{ 'hello'[-1] }} {{ 'hello'[9] }}| {{ 'héllo'[1:3] }} {{ 'hello'[4:1:-1] }} {{ 'hello'[-100:2] }}
{{ [1,2,3][::-1] }} {{ [1,2,3][1:] }} {{ [1,2,3][-2:] }} {{ [1,2,3][:0] }} {{ (1,2,3)[1:] }} {{ [1,2,3][-1] }} {{ [1,2,3][7] }}| {{ range(10)[2:5] | list }} {{ range(3)[1] }}
{{ range(3) }} {{ range(1, 7, 2) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }} {{ range(3) | length }} {{ 2 in range(3) }} {{ range(1, 10, 3) }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ (1, 2) == (1, 2) }} {{ [1] == (1,) }} {{ {'a': 1} == {'a': 1.0} }} {{ none == false }} {{ missing == missing }} {{ 'a' != 'b' }}
{{ 1 and 0 }} {{ 0 or 'x' }} {{ '' or none }} {{ not '' }} {{ 'a' and 'b' }} {{ [] or {} }} {{ 1 if 0 }}| {{ 'a' if true else 'b' if true else 'c' }}
{{ 'ink' in 'think' }} {{ 'role' in m[0] }} {{ 'x' not in m[0] }} {{ 1 in [1, 2] }} {{ 'a' in ('a',) }} {{ 'a' in missing }} {{ 'z' in {'z': 1}.keys() }}
{{ m | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(' / ') }} {{ m | rejectattr('role', 'eq', 'user') | list | length }} {{ m | selectattr('name') | list }} {{ m | selectattr('role', 'in', ['user']) | list | length }} {{ m | selectattr('name', 'defined') | list | length }}
{{ [1, 2, 3, 4] | select('even') | list }} {{ [1, 2, 3] | reject('odd') | list }} {{ [0, 1, '', 'a'] | select | list }} {{ ['a', 'B'] | map('upper') | list }} {{ ['a', 'b'] | map('replace', 'a', 'z') | join }} {{ [1, 2] | map('string') | join('+') }} {{ [{'a': 1}, {}] | map(attribute='a', default=0) | list }}
{{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A', 'c'] | sort(case_sensitive=true) }} {{ [3, 1, 2] | sort(reverse=true) }} {{ m | sort(attribute='role') | map(attribute='role') | join(',') }} {{ ['b', 'A'] | min }} {{ [3, 1] | max }} {{ [1, 2.5] | sum }} {{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }} {{ [] | sum }}
{% for g in m | groupby('role') %}{{ g.grouper }}={{ g.list | length }}={{ g[0] }};{% endfor %}{% for role, items in m | groupby('role') %}{{ role }}{{ items | length }}{% endfor %}
{{ [1, 1, 2, 'a', 'A'] | unique | list }} {{ [1, 2, 3] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3, 4, 5] | slice(2) | list }} {{ [1, 2, 3] | first }} {{ [1, 2, 3] | last }} {{ [] | first }}| {{ 'abc' | reverse }} {{ [1, 2] | reverse | list }} {{ 'abc' | first }} {{ 'abc' | list }}
{{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(by='value', reverse=true) }} {{ {'B': 1, 'a': 2} | dictsort(true) }} {% for k, v in {'b': 1, 'a': 2} | items %}{{ k }}{{ v }}{% endfor %} {{ {'b': 1} | list }} {{ {'b': 1} | length }}
{% set d = {'z': 1, 'a': 2} %}{{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d.keys() }} {{ d.items() }} {{ d.get('z') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d['z'] }} {{ d.z }} {{ d.q }}|
{{ dict(a=1, b='c') }} {{ dict({'a': 1}, b=2) }} {{ dict([('x', 1)]) }} {{ {'a': 1, 'a': 2} }} {{ {1: 'x'}[1] }} {{ {true: 'x'}[1] }}
{{ x is defined }} {{ m is defined }} {{ none is none }} {{ 'a' is string }} {{ m is sequence }} {{ m is iterable }} {{ m[0] is mapping }} {{ 3 is number }} {{ 3 is integer }} {{ 3.0 is float }} {{ true is boolean }} {{ true is integer }} {{ 'a' is iterable }} {{ 3 is iterable }} {{ m[0] is sequence }} {{ none is defined }} {{ x is undefined }} {{ x is none }} {{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ 'a' is in 'abc' }} {{ 1 is eq 1 }} {{ 2 is gt 1 }} {{ true is true }} {{ 1 is true }} {{ 'AB' is upper }} {{ raise_exception is callable }} {{ x is not defined }} {{ m is not string }} {{ 1 is sameas 1 }} {{ d is mapping }}
{{ none | default('d') }} {{ none | default('d', true) }} {{ x | default('e') }} {{ '' | d('f', boolean=true) }} {{ x | default }}| {{ m[0].name | default('nobody') }}
{{ ' a ' | trim }}| {{ 'xax' | trim('x') }} {{ 'a\nb\n\nc' | indent }}| {{ 'a\nb' | indent(2, true) }}| {{ 'a\n\nb' | indent(2, blank=true) }}| {{ 'a\nb' | indent('> ') }} {{ 'A' | lower }} {{ 'a' | upper }} {{ 5 | string ~ 'x' }} {{ 'a b c' | wordcount }} {{ 'ab' | length }} {{ 'é' | length }} {{ 'ab' | center(6) }}|
{{ '3' | int + 1 }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '2.9' | int }} {{ 3.9 | int }} {{ 'ff' | int(base=16) }} {{ '2.5' | float }} {{ 'x' | float }} {{ 2.567 | round(1) }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.1 | round(method='ceil') }} {{ 2.19 | round(1, 'floor') }} {{ 5 | round }} {{ -3 | abs }} {{ 1234 | round(-2) }} {{ none | int }}
{{ '<b>' | e }} {{ '<b>' | safe }} {{ ('<b>' | safe) + '<i>' }} {{ ('<b>' | e) ~ '<i>' }} {{ '<a>' + ('<b>' | safe) }} {{ '&"\'' | escape | escape }} {{ '<b>' | safe | upper }} {{ ('<b>' | safe | trim) + '<' }}
{{ 'a' 'b' "c" }} {{ 'é\x41\u00e9\t|\\n\'\"' }} {{ 'a\
b' }} {{ '\q' }} {{ 0x1f }} {{ 1_000 }} {{ 0b11 }} {{ 1e3 }} {{ 1.5e-3 }} {{ '\101' }}
{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [0] * 3 }} {{ 'a' * 0 }}| {{ 'a' * -1 }}| {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }} {{ 1 + 2.5 }} {{ -3 + +2 }} {{ -'3' | int }} {{ 2 * 3 + 4 * 5 - 6 / 2 }} {{ (1 + 2) * 3 }} {{ 10 - 2 - 3 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 'a' ~ 1 + 2 }}
{% set ns = namespace(n=0, text='') %}{% for x in m %}{% set ns.n = ns.n + 1 %}{% set ns.text = ns.text ~ x.role[0] %}{% endfor %}{{ ns.n }}{{ ns.text }}{{ ns.missing }}
{% for x in m %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{{ loop.previtem.role if loop.previtem is defined else '-' }}{{ loop.nextitem.role if loop.nextitem is defined else '-' }}{{ loop.depth }};{% endfor %}
{% for x in m if x.role == 'user' %}{{ loop.index }}{{ x.content }}{{ loop.length }}{% else %}none{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}{% for x in m %}{% if loop.changed(x.role) %}{{ x.role }}{% endif %}{% endfor %}
{% for x in m %}{% if x.role == 'system' %}{% continue %}{% endif %}{{ x.role }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}|{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}|{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for x in [[1, [2, [3]]], 4] recursive %}{% if x is iterable %}<{{ loop(x) }}>{% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for c in 'abc' %}{{ c }}-{% endfor %}{% for k in {'x': 1, 'y': 2} %}{{ k }}{% endfor %}{% for i in range(3) %}{% for j in range(i) %}{{ i }}{{ j }}{{ loop.index }} {% endfor %}{% endfor %}
{% macro f(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, 2) }} {{ f(b=3, a=4) }} {{ f(*[1, 2]) }} {{ f(**{'a': 1, 'c': 5}) }} {{ f('é') | length }} {{ f() }} {{ f.name }}
{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}{% macro g() %}[{{ caller() }}]{% endmacro %}{% call g() %}in{% endcall %}{% macro h() %}{{ caller('z') }}{% endmacro %}{% call(v) h() %}<{{ v }}>{% endcall %}
{% macro down(n) %}{{ n }}{% if n > 0 %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(5) }}{% set late = 'seen' %}{% macro see() %}{{ late }}{% endmacro %}{{ see() }}{% set late = 'changed' %}{{ see() }}
{% set x = 'outer' %}{% for i in [1, 2] %}{{ x }}{% set x = 'inner' ~ i %}{{ x }}{% endfor %}{{ x }}|{% if true %}{% set y = 1 %}{% endif %}{{ y }}|{% with z = 2 %}{{ z }}{% set x = 'with' %}{{ x }}{% endwith %}{{ x }}{{ z }}|
{% set t %}a {{ m[0].role }} b{% endset %}[{{ t }}]{{ t | length }}{% set u | upper | trim %} abc {% endset %}[{{ u }}]{% set a, b = 1, 2 %}{{ a + b }}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}{% filter upper %}ab{{ m[0].role }}{% endfilter %}
{% raw %}{{ not rendered }} {% if %}{% endraw %}|a{# {{ nothing }} {% x %} #}b|{{ '{{' }}{{ '%}' }}|{{ "#}" }}
{% generation %}{{ m[0].content }}{% set q = 1 %}{% endgeneration %}{{ q }}|{%- generation -%} a {%- endgeneration -%}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}x{{ j() }}y{{ j() }}z
{{ m[0].name }}|{{ m[0]['name'] }}|{{ missing }}|{{ m[9] }}|{{ m[0].role.nothing }}|{{ m[0].get('role') }}|{{ m[0]['role'] }}|{{ m | length }}|{{ m.length }}
{{ (m | map(attribute='role') | list)[0] }} {{ (m | first).role }} {{ m[0].content.split('\n')[0].strip() }} {{ m[-1]['content'][:3] | upper }} {{ m[0].content | trim | length }} {{ ('a' if m else 'b') ~ 'c' }}
{{ 'x'.join(m | map(attribute='role')) }} {{ (m | selectattr('role', 'eq', 'nobody')) and true }} {{ m | selectattr('role', 'eq', 'nobody') | list and true }} {{ m | map(attribute='role') | unique | sort | join(',') }}
{{ [m[0].role, 1, none, [2]] }} {{ {'r': m[0].role} }} {{ ['\'', '"', '\'"', '\\', 'é', '\x00'] }} {{ [1.5, [true]] | string }} {{ [[]] }} {{ [{}] }}
{{ strftime_now('%Y') | length }}{{ strftime_now('%d %b %Y') | length > 9 }}
{{ not x }} {{ not x is defined }} {{ x is defined and x }} {{ (x or 'd') }} {{ 1 if x is defined and x is not none else 2 }} {{ x if x else 'y' }} {{ m and 1 }}
{{ 1 - 1 }} {{ 1-1 }} {{ a.b if a is defined }}| {{ [1,2,] }} {{ {'a':1,} }} {{ (1,2,) }} {{ m[0]["role"]~'x' }} {{- ' y ' -}} z
{{ 10 | string | length }} {{ true | string }} {{ none | string }} {{ [1, 2] | join(', ') }} {{ [none, true] | join('-') }} {{ missing | join }}| {{ missing | length }} {{ missing | list }} {{ 'abc' | join('.') }} {{ m | join(';', attribute='role') }}
{{ '%s' | format('a') }} {{ '%s-%s' | format(1, none) }} {{ '%(x)s' | format(x=3) }} {{ ('a', 'b') | join }} {{ 'a' in ['a'] and 'b' not in ['a'] }} {{ 'A' < 'a' }} {{ 'a' ~ ('b' if false) }}
"""

WHITE_SPACE = [
    "  {%- if true -%}  x  {%- endif -%}  y\n{% if true %}\n  z\n{% endif %}\n{{ 'w' }}\n",
    "    {% for x in m %}\n    {{ x.role }}\n    {% endfor %}\n",
    "a\n   {%+ if true %}b{% endif %}\n",
    "{{ 'a' }}\n\n{{ 'b' }}\n\n",
    "a {# c #}\nb\n  {# d #}\n  c {#- e -#}  d\n{#+ f +#}\ng",
    "{% raw %}  x\n{% endraw %}\ny {%- raw -%}  z  {%- endraw -%}  w\n  {% raw %}\nq{% endraw +%}\nr",
    "  {{ 'a' }}  {{- 'b' -}}  {{ 'c' }}\n  {{+ 'd' }}\n",
    "{% if true %}a{% endif %}\n{% if true +%}\nb{% endif %}\n\t {% if true %}c{% endif %} d\n   {% set x = 1 %}   \n{{ x }}",
    "a\r\nb\r{% if true %}\r\nc{% endif %}\r\n",
    "\n  {% set x = 1 %}\n  {%- set y = 2 %}\n  {% set z = 3 -%}\n  {{ x }}{{ y }}{{ z }}",
]

REFUSED = [
    "{{ m[0].content.nothing() }}",
    "{{ missing.attribute }}",
    "{{ missing + 1 }}",
    "{{ 'a' + 1 }}",
    "{{ 1 / 0 }}",
    "{{ none | length }}",
    "{% for x in none %}{% endfor %}",
    "{% for x in 3 %}{% endfor %}",
    "{{ 1 < 'a' }}",
    "{{ m.append(1) }}",
    "{% set _ = m[0].update({'a': 1}) %}",
    "{{ [1] | join.x }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set q.x = 1 %}",
    "{{ m | nothing }}",
    "{{ m is nothing }}",
    "{% unknown %}",
    "{% if %}{% endif %}",
    "{% for x in m %}",
    "{{ 'a }}",
    "{{ (1 }}",
    "{{ {[1]: 2} }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}",
    "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{{ range(1000000) | list }}",
    "{{ 'a'.index('b') }}",
    "{{ '%d' % 'a' }}",
    "{{ '%s %s' % ('a',) }}",
    "{{ '{}'.format() }}",
    "{{ none() }}",
    "{{ m | map(attribute='role') | length }}",
    "{{ missing() }}",
    "{% break %}",
    "{{ raise_exception('no ' ~ m[0].role) }}",
    "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{% for x in m %}{{ f() }}{% endfor %}",
    "{{ {1: 2} | tojson(sort_keys=true) }}{{ missing | tojson }}",
    "{{ ''.join([1]) }}",
    "{{ 1 in 'a' }}",
    "{% include 'x' %}",
    "{% do m %}",
]

OPERATORS = ["or", "and", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "+", "-", "~", "*", "/", "//", "%", "**"]
