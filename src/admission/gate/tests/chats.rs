//! Chats for adapters that bring a template.

use super::*;
use crate::adapters::testing::contents;

#[tokio::test]
async fn a_chat_is_rendered_with_its_adapters_own_template_where_that_has_one() {
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(template("base:{{ messages[0].content }}"))));
    house.adapter("plain", 1);
    let version = house.adapter("own", 2);
    let chat = || PromptInput::Chat(vec![ChatMessage { role: "user".into(), content: "hi".into() }].into());
    let choice = |name: &str| with_adapter(name, None).delta;
    let text = async |name: Option<&str>| {
        let choice = name.map(choice).unwrap_or_default();
        house.gate.tokenize(chat(), &choice, ClientKey::LOCAL).await.unwrap().text
    };
    assert_eq!(text(None).await, "base:hi");
    assert_eq!(text(Some("plain")).await, "base:hi");
    assert_eq!(text(Some("own")).await, "2hi");
    let mut wanted = with_adapter("own", Some(version));
    wanted.input.prompt = chat();
    drop(house.gate.admit(wanted, Arrival::now()).await.unwrap());
    let ids = house.gate.parts.tokenizer.encode("2hi", false).unwrap();
    assert_eq!(house.engine.take().request.prompt[..], ids);
    assert_eq!(house.installer.asked.load(SeqCst), 1, "tokenizing loads nothing");
    // Another version of the name, another template.
    house.adapter("own", 4);
    assert_eq!(text(Some("own")).await, "4hi");
    house.adapter("own", 3);
    assert_eq!(text(Some("own")).await, "base:hi");
    let none = house.gate.tokenize(chat(), &choice("none"), ClientKey::LOCAL).await;
    assert!(matches!(none, Err(AdmissionError::Adapter(AdapterError::NotFound { .. }))));
    assert_eq!((house.gate.free_places(), house.registry.leases()), (2, 0));
}

#[tokio::test]
async fn a_model_without_a_template_chats_for_an_adapter_that_brings_one() {
    let house = House::new();
    house.adapter("own", 2);
    let choice = with_adapter("own", None).delta;
    let chat = |messages: Vec<ChatMessage>| PromptInput::Chat(messages.into());
    let user = ChatMessage { role: "user".into(), content: "hi".into() };
    assert_eq!(house.gate.tokenize(chat(vec![user.clone()]), &choice, ClientKey::LOCAL).await.unwrap().text, "2hi");
    let mut files = contents(2);
    files[2].1 = b"{{ messages.nothing() }}".to_vec();
    house.adapter_of("own", &files);
    let failed = house.gate.tokenize(chat(vec![user]), &choice, ClientKey::LOCAL).await.unwrap_err();
    assert!(
        matches!(&failed, AdmissionError::Chat { adapter: Some(name), .. } if name.as_str() == "own"),
        "{failed:?}"
    );
    assert!(failed.to_string().starts_with("adapter own: the chat template failed"), "{failed}");
}
