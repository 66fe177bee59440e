use std::time::{Duration, UNIX_EPOCH};

use super::*;

const NOW: SystemTime = UNIX_EPOCH;

fn messages(pairs: &[(&str, &str)]) -> Vec<ChatMessage> {
    pairs.iter().map(|(role, content)| ChatMessage { role: (*role).into(), content: (*content).into() }).collect()
}

fn render(source: &str, pairs: &[(&str, &str)]) -> Result<String, ChatError> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(&messages(pairs), NOW)
}

/// In the style of Llama 3: header tokens, `| trim`, a date.
const HEADERS: &str = r#"
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

/// In the style of Qwen: ChatML, a default system prompt, reverse loops with a namespace, Python's string methods.
const CHATML: &str = r#"{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not(message.content.startswith('<tool>')) %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}{{- 'LATE ' }}{%- endif %}
        {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"#;

/// In the style of Gemma: no system role, strict alternation, roles renamed.
const TURNS: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}";

/// In the style of Mistral: instruction brackets, eos after each answer, blocks on lines of their own.
const BRACKETS: &str = "{{ bos_token }}
{%- for message in messages %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' ~ message['content'] ~ ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ message['content'] ~ eos_token }}
    {% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}";

#[test]
fn header_templates_trim_and_print_the_date() {
    let template = ChatTemplate::new(HEADERS, "<|begin_of_text|>", "<|eot_id|>").unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(1_735_603_199);
    let prompt = template.render(&messages(&[("system", " Be kind. "), ("user", "Hi\n")]), now).unwrap();
    assert_eq!(
        prompt,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 30 Dec 2024\n\nBe kind.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn chatml_templates_use_python_methods_namespaces_and_break() {
    let prompt =
        render(CHATML, &[("user", "2+2?"), ("assistant", "<think>hm</think>\n\n4"), ("user", "why?")]).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n\
         <|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn turn_templates_rename_roles_and_refuse_what_they_were_not_trained_on() {
    assert_eq!(
        render(TURNS, &[("user", "Hi"), ("assistant", "Hello "), ("user", "Bye")]).unwrap(),
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n\
         <start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    );
    let refused = |pairs: &[(&str, &str)]| match render(TURNS, pairs) {
        Err(ChatError::Refused { message }) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[("system", "x")]), "System role not supported");
    assert!(refused(&[("user", "x"), ("user", "y")]).starts_with("Conversation roles must alternate"));
}

#[test]
fn block_lines_leave_no_white_space_as_in_transformers() {
    assert_eq!(
        render(BRACKETS, &[("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]).unwrap(),
        "<s>[INST] Hi [/INST]\nHello</s>\n[INST] Bye [/INST]\n"
    );
    assert!(matches!(render(BRACKETS, &[("tool", "x")]), Err(ChatError::Refused { .. })));
}

#[test]
fn an_exception_raised_in_a_macro_is_still_the_clients_fault() {
    let source =
        "{% macro check(role) %}{{ raise_exception('no ' ~ role) }}{% endmacro %}{{ check(messages[0].role) }}";
    assert!(matches!(render(source, &[("robot", "")]), Err(ChatError::Refused { message }) if message == "no robot"));
}

#[test]
fn tojson_writes_what_python_writes() {
    let source =
        r#"{{ {"b": "é<&'", "a": [1, 2.5, true, none]} | tojson }}|{{ [1, [], {"k": "v"}] | tojson(indent=2) }}"#;
    let rendered = render(source, &[]).unwrap();
    assert!(rendered.contains(r#""a": [1, 2.5, true, null]"#), "{rendered}");
    assert!(rendered.contains(r#""b": "é<&'""#), "{rendered}");
    assert!(rendered.ends_with("|[\n  1,\n  [],\n  {\n    \"k\": \"v\"\n  }\n]"), "{rendered}");
}

#[test]
fn generation_blocks_print_their_content() {
    let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}";
    assert_eq!(render(source, &[("assistant", "a"), ("assistant", "b")]).unwrap(), "ab");
}

#[test]
fn a_template_that_does_not_compile_or_run_says_so() {
    assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(ChatError::Template { .. })));
    assert!(matches!(render("{{ messages[0].content.nonsense() }}", &[("user", "x")]), Err(ChatError::Render { .. })));
    assert!(matches!(render("{{ strftime_now('%Q') }}", &[]), Err(ChatError::Render { .. })));
}

#[test]
fn the_template_is_found_in_every_place_transformers_puts_it() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = |dir: &Path| ChatTemplate::from_dir(dir).unwrap().map(|template| template.render(&[], NOW).unwrap());
    let config = |text: &str| std::fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();
    assert_eq!(prompt(dir.path()), None);
    config(r#"{"bos_token": {"content": "<b>"}, "eos_token": null}"#);
    assert_eq!(prompt(dir.path()), None);
    config(r#"{"bos_token": {"content": "<b>"}, "chat_template": "{{ bos_token }}1"}"#);
    assert_eq!(prompt(dir.path()).as_deref(), Some("<b>1"));
    config(r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "2"}]}"#);
    assert_eq!(prompt(dir.path()).as_deref(), Some("2"));
    config(r#"{"chat_template": [{"name": "a", "template": "t"}, {"name": "b", "template": "2"}]}"#);
    assert!(matches!(ChatTemplate::from_dir(dir.path()), Err(ChatError::Config { .. })));
    config("[");
    assert!(matches!(ChatTemplate::from_dir(dir.path()), Err(ChatError::Config { .. })));
    config(r#"{"bos_token": "<b>", "chat_template": "{{ bos_token }}1"}"#);
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ bos_token }}3\n").unwrap();
    assert_eq!(prompt(dir.path()).as_deref(), Some("<b>3"));
}
