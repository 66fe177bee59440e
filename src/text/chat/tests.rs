use std::time::{Duration, UNIX_EPOCH};

use super::super::fixtures::{byte_level, settings_in};
use super::*;

const NOW: SystemTime = UNIX_EPOCH;

fn chat(pairs: &[(&str, &str)]) -> Chat {
    let message = |(role, content): &(&str, &str)| ChatMessage { role: (*role).into(), content: (*content).into() };
    pairs.iter().map(message).collect::<Vec<_>>().into()
}

fn compile(source: &str, tokens: &str) -> Result<ChatTemplate, ChatError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), tokens).unwrap();
    ChatTemplate::new(source, &settings_in(dir.path()).unwrap(), &byte_level())
}

fn render(source: &str, pairs: &[(&str, &str)]) -> Result<String, ChatError> {
    let template = compile(source, r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)?;
    Ok(template.render(&chat(pairs), NOW)?.text())
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
    let template = compile(HEADERS, r#"{"bos_token": "<|begin_of_text|>"}"#).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(1_735_603_199);
    let prompt = template.render(&chat(&[("system", " Be kind. "), ("user", "Hi\n")]), now).unwrap();
    assert_eq!(
        prompt.text(),
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
    assert!(matches!(render("{% if %}", &[]), Err(ChatError::Template(_))));
    let said = render("\n{{ x | nonsense }}", &[]).unwrap_err().to_string();
    assert_eq!(said, "the chat template does not compile: line 2: no filter named 'nonsense'");
    let failed = |source: &str| match render(source, &[("user", "x")]) {
        Err(ChatError::Render { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(failed("{{ 1 }}\n{{ messages[0].content.nonsense() }}"), "line 2: 'nonsense' is undefined");
    assert!(failed("{{ strftime_now('%Q') }}").contains("unknown format"));
    assert!(failed("{{ nothing['a' * 100000].x.y }}").len() < 600, "what a template says is shortened");
}

#[test]
fn what_a_template_may_take_ends_and_grows_with_the_conversation() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let doubling =
        "{% set n = namespace(x=messages[0].content) %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    let long = "{% for i in range(100000) %}{{ messages[0].content * 100 }}{% endfor %}";
    for source in [endless, doubling, deep, long, "{{ 'a' * 10**9 }}"] {
        assert!(matches!(render(source, &[("user", "x")]), Err(ChatError::Limit { .. })), "{source}");
    }
    let copies =
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.t }}";
    let content = "x".repeat(20_000);
    let pairs = vec![("user", content.as_str()); 60];
    assert_eq!(render(copies, &pairs).unwrap().len(), 60 * 20_000, "a template may put its messages together");
}

#[test]
fn variables_of_a_request_reach_the_template_and_whole_numbers_are_whole() {
    let template = compile(
        "{{ n }} {{ x }} {{ thinking }} {{ none_ }} {{ list }} {{ map }} {{ bos_token }}{{ 'G' if add_generation_prompt }}",
        r#"{"bos_token": "<s>"}"#,
    )
    .unwrap();
    let text = |text: &str| TemplateValue::Text(text.to_owned());
    let kwargs = [
        ("n", TemplateValue::Number(3.0)),
        ("x", TemplateValue::Number(0.5)),
        ("thinking", TemplateValue::Bool(false)),
        ("none_", TemplateValue::Null),
        ("list", TemplateValue::List(vec![TemplateValue::Number(-1.0), text("a")])),
        ("map", TemplateValue::Map(vec![("k".into(), TemplateValue::Number(1e300))])),
        ("bos_token", text("B")),
        ("add_generation_prompt", TemplateValue::Bool(false)),
    ];
    let template_kwargs = kwargs.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let chat = Chat { template_kwargs, ..chat(&[("user", "x")]) };
    let prompt = template.render(&chat, NOW).unwrap().text();
    assert_eq!(prompt, "3 0.5 False None [-1, 'a'] {'k': 1e+300} B");
}

#[test]
fn a_file_that_was_named_replaces_the_models_template() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.jinja");
    std::fs::write(&file, "file").unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "own").unwrap();
    let settings = settings_in(dir.path()).unwrap();
    let said = |file: Option<&Path>| {
        let template = ChatTemplate::load(file, &settings, &byte_level())?.unwrap();
        Ok::<_, ChatError>(template.render(&chat(&[("user", "x")]), NOW)?.text())
    };
    assert_eq!((said(None).unwrap().as_str(), said(Some(&file)).unwrap().as_str()), ("own", "file"));
    assert!(matches!(said(Some(&dir.path().join("none"))), Err(ChatError::Read { .. })));
}

#[test]
fn a_chat_with_tools_has_the_template_for_tools_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let rendered = |file: Option<&Path>, tools: Option<TemplateValue>| {
        let settings = settings_in(dir.path()).unwrap();
        let template = ChatTemplate::load(file, &settings, &byte_level()).unwrap().unwrap();
        let mut chat = chat(&[("user", "hi")]);
        chat.template_kwargs.extend(tools.map(|tools| ("tools".to_owned(), tools)));
        template.render(&chat, NOW).unwrap().text()
    };
    let tools = || Some(TemplateValue::List(vec![TemplateValue::Text("calc".to_owned())]));
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools }}"}]}"#,
    );
    assert_eq!(rendered(None, tools()), "with ['calc']");
    assert_eq!(rendered(None, None), "plain");
    assert_eq!(rendered(None, Some(TemplateValue::Null)), "plain");
    assert_eq!(rendered(None, Some(TemplateValue::List(Vec::new()))), "with []");
    // Files go before the config, all of them.
    write("chat_template.jinja", "file");
    assert_eq!(rendered(None, tools()), "file");
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "tools of a file");
    assert_eq!((rendered(None, tools()), rendered(None, None)), ("tools of a file".to_owned(), "file".to_owned()));
    write("own.jinja", "own");
    assert_eq!(rendered(Some(&dir.path().join("own.jinja")), tools()), "own", "the operator's is for all");
}
