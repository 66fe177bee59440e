use std::time::UNIX_EPOCH;

use serde_json::Value as Json;

use super::*;

const LIMITS: Limits = Limits { steps: 1_000_000, bytes: 16 << 20, output: 1 << 20 };

/// What transformers renders (`tools/text/renderings.py`).
const RENDERINGS: &str = include_str!("../../../tests/fixtures/templates/renderings.json");

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(value) => Value::Int(value.as_i64().unwrap()),
        Json::String(text) => Value::text(text),
        Json::Array(values) => Value::list(values.iter().map(self::value).collect()).unwrap(),
        Json::Object(_) => unreachable!("messages are read in the order of their fields"),
    }
}

fn messages(json: &Json) -> Value {
    let message =
        |message: &Json| Value::dict(["role", "content"].map(|name| (name.to_owned(), value(&message[name])))).unwrap();
    Value::list(json.as_array().unwrap().iter().map(message).collect()).unwrap()
}

fn render(source: &str) -> Result<String, RenderError> {
    Template::compile(source).unwrap().render(Vec::new(), UNIX_EPOCH, LIMITS)
}

#[test]
fn templates_render_as_transformers_renders_them_and_fail_where_it_fails() {
    let renderings: Json = serde_json::from_str(RENDERINGS).unwrap();
    for case in renderings["cases"].as_array().unwrap() {
        let mut variables: Vec<(String, Value)> = vec![
            ("tools".to_owned(), Value::None),
            ("documents".to_owned(), Value::None),
            ("add_generation_prompt".to_owned(), Value::Bool(true)),
        ];
        let conversation = &renderings["conversations"][case["conversation"].as_u64().unwrap() as usize];
        variables.extend(["m", "messages"].map(|name| (name.to_owned(), messages(conversation))));
        for given in [&renderings["tokens"], &case["variables"]] {
            variables.extend(given.as_object().unwrap().iter().map(|(name, given)| (name.clone(), value(given))));
        }
        let found = Template::compile(case["template"].as_str().unwrap()).map_err(|error| error.to_string()).and_then(
            |template| {
                template.render(variables, UNIX_EPOCH, LIMITS).map_err(|error| match error {
                    RenderError::Raised { message } => format!("raised {message}"),
                    other => other.to_string(),
                })
            },
        );
        match (case["text"].as_str(), case["raised"].as_str()) {
            (Some(text), _) => assert_eq!(found.as_deref(), Ok(text), "{case}"),
            (None, Some(raised)) => assert_eq!(found, Err(format!("raised {raised}")), "{case}"),
            (None, None) => {
                assert!(found.as_ref().is_err_and(|error| !error.starts_with("raised")), "{found:?} {case}")
            }
        }
    }
}

#[test]
fn what_is_not_known_is_refused_by_name_where_the_template_is_compiled() {
    for (source, said) in [
        ("\n{{ 'a' | urlize }}", "line 2: the filter 'urlize' is not supported"),
        ("{% if false %}{{ 'a' | urlize }}{% endif %}", "line 1: the filter 'urlize' is not supported"),
        ("{{ 'a' | nothing }}", "line 1: no filter named 'nothing'"),
        ("{{ 'a' is nothing }}", "line 1: no test named 'nothing'"),
        ("{{ 'a'.encode() }}", "line 1: the method 'encode' is not supported"),
        ("{% include 'x' %}", "line 1: the tag 'include' needs another template, and a chat template stands alone"),
        ("{% unknown %}", "line 1: unknown tag 'unknown'"),
        ("{% if true %}", "line 1: the template ends without 'elif' or 'else' or 'endif'"),
        ("{% macro f %}x{% endmacro %}", "line 1: expected the parameters of a macro in parentheses"),
        ("{% macro f(a=1, b) %}x{% endmacro %}", "line 1: non-default argument follows default argument"),
        ("{% call(a=1, b) f() %}x{% endcall %}", "line 1: non-default argument follows default argument"),
        ("{{ 'a", "line 1: a string has no end"),
        ("{{ 99999999999999999999 }}", "line 1: not a number that fits 64 bits"),
    ] {
        assert_eq!(Template::compile(source).unwrap_err().to_string(), said);
    }
    // Jinja fails where a filter that it does not know is reached.
    assert_eq!(render("{% if false %}{{ 'a' | nothing }}{% endif %}b"), Ok("b".to_owned()));
}

#[test]
fn no_template_takes_more_than_it_may() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n, x) %}{{ f(n + 1, [x]) }}{% endmacro %}{{ f(0, 0) }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
        "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 10**9 }}",
        "{{ range(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a' | indent(10**9, true) }}",
        "{{ [1] | batch(10**9, 0) | list }}",
        "{{ [1] | slice(10**9) | list }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%.1000000000f' % 1.5 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ ''.join(['a' * 100000] * 100000) }}",
        "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ 'b' in s }}{% endfor %}",
        "{% set s = 'é' * 100000 %}{% for i in range(100000) %}{{ s[9999] }}{% endfor %}",
        "{{ range(100000) | unique | list }}",
        "{% for i in range(100000) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
        "{% set t %}{% for i in range(100000) %}{{ 'a' * 100 }}{% endfor %}{% endset %}",
    ] {
        let found = render(source);
        assert!(matches!(found, Err(RenderError::Limit { .. })), "{source}: {found:?}");
    }
    assert!(matches!(render("{{ 7 ** 1000000000 }}"), Err(RenderError::Failed { .. })));
    assert_eq!(render("{% set n = namespace() %}{% set n.x = n %}{{ n.x.x.x }}"), Ok("<Namespace>".to_owned()));
}

#[test]
fn no_nesting_of_a_template_overflows_the_stack() {
    let many = 100_000;
    for (open, inside, close) in [
        ("(", "1", ")"),
        ("[", "", "]"),
        ("{1: ", "1", "}"),
        ("-", "1", ""),
        ("not ", "1", ""),
        ("1 + ", "1", ""),
        ("1 ~ (", "1", ")"),
        ("1 and ", "1", ""),
        ("1 ** ", "1", ""),
        ("f(", "", ")"),
        ("", "a", ".b"),
        ("", "a", "|upper"),
        ("", "a", "()"),
        ("", "a", "[0]"),
        ("", "1", " if 1 else 1"),
    ] {
        let source = format!("{{{{ {}{inside}{} }}}}", open.repeat(many), close.repeat(many));
        assert!(Template::compile(&source).is_err(), "{open}{inside}{close}");
    }
    assert!(Template::compile(&"{% if 1 %}".repeat(many)).is_err());
    assert!(Template::compile(&format!("{{% set {}", "(".repeat(many))).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_panics(source in "[ -~\n]{0,40}", inside in "[a-z0-9'\"()\\[\\]{}|.,:~+*/% <>=_-]{0,30}") {
        for source in [source, format!("{{{{ {inside} }}}}"), format!("{{% set x = {inside} %}}{{{{ x }}}}")] {
            if let Ok(template) = Template::compile(&source) {
                let _ = template.render(Vec::new(), UNIX_EPOCH, LIMITS);
            }
        }
    }
}
