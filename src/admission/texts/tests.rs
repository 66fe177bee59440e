use super::super::testing::House;
use super::*;

const PARTY: Party = Party { client: ClientKey::LOCAL, adapter: None };

async fn of(house: &House, name: &str) -> Result<Arc<ChatTemplate>, AdmissionError> {
    let resolved = house.registry.resolve(&name.parse().unwrap(), None).unwrap();
    let template = resolved.chat_template.unwrap();
    house.texts.template(&resolved, template, None, PARTY, &house.registry, house.installer.as_ref()).await
}

#[tokio::test]
async fn adapters_with_the_same_template_share_one_and_those_who_ask_at_once_wait_for_it() {
    let house = House::new();
    house.adapter("a", 2);
    house.adapter("b", 2);
    house.adapter("c", 4);
    let (one, same, other) = tokio::join!(of(&house, "a"), of(&house, "b"), of(&house, "c"));
    let (one, same, other) = (one.unwrap(), same.unwrap(), other.unwrap());
    assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
    assert!(Arc::ptr_eq(&one, &of(&house, "a").await.unwrap()));
    assert_eq!(house.installer.background.load(std::sync::atomic::Ordering::SeqCst), 2, "each was compiled once");
}

#[tokio::test]
async fn a_failure_is_not_kept() {
    let house = House::new();
    let version = house.adapter("a", 2).to_string();
    let file = house.folder().join("objects").join(version).join(crate::adapters::CHAT_TEMPLATE_FILE);
    let content = std::fs::read(&file).unwrap();
    std::fs::write(&file, content.to_ascii_uppercase()).unwrap();
    let damaged = of(&house, "a").await.unwrap_err();
    assert!(matches!(damaged, AdmissionError::Adapter(crate::adapters::AdapterError::Corrupt { .. })), "{damaged:?}");
    std::fs::write(&file, content).unwrap();
    of(&house, "a").await.unwrap();
}

/// Whoever reads and compiles it may leave: another does it then.
#[tokio::test]
async fn a_client_that_leaves_keeps_nobody_waiting() {
    let house = House::new();
    house.adapter("a", 2);
    let (release, hold) = std::sync::mpsc::channel();
    *house.installer.hold_background.lock().unwrap() = Some(hold);
    let mut first = Box::pin(of(&house, "a"));
    tokio::select! {
        biased;
        _ = &mut first => panic!("it is held"),
        () = tokio::task::yield_now() => {}
    }
    drop(first);
    of(&house, "a").await.unwrap();
    release.send(()).unwrap();
    assert_eq!(house.installer.background.load(std::sync::atomic::Ordering::SeqCst), 2);
}

/// However many bring templates, some of the threads that bring adapters in are left to adapters.
#[tokio::test]
async fn few_templates_are_compiled_at_a_time() {
    let house = House::new();
    let (release, hold) = std::sync::mpsc::channel();
    *house.installer.hold_background.lock().unwrap() = Some(hold);
    let check = |text: &str| {
        let (templates, installer, text) =
            (Arc::clone(&house.texts), Arc::clone(&house.installer), text.as_bytes().to_vec());
        tokio::spawn(async move { templates.check_in_turn(text, ClientKey::LOCAL, installer.as_ref()).await })
    };
    let begun = || house.installer.background.load(std::sync::atomic::Ordering::SeqCst);
    let checks: Vec<_> = ["{{ a }}", "{% for %}", "{{ b }}"].into_iter().map(check).collect();
    while house.texts.uploads.waiting() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(begun(), 1, "the others wait for their turn");
    house.adapter("a", 2);
    of(&house, "a").await.unwrap();
    assert_eq!(begun(), 2, "chats have turns of their own");
    release.send(()).unwrap();
    let mut outcomes = Vec::new();
    for check in checks {
        outcomes.push(check.await.unwrap().unwrap().is_ok());
    }
    assert_eq!(outcomes, [true, false, true]);
}
