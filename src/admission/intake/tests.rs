use std::sync::atomic::Ordering::SeqCst;

use metrics_exporter_prometheus::PrometheusHandle;

use super::*;
use crate::adapters::AdapterState;
use crate::adapters::testing::{contents, header};
use crate::admission::testing::{House, metric, recorded};

struct Door {
    house: House,
    intake: Arc<Intake>,
    metrics: PrometheusHandle,
}

impl Door {
    fn new() -> Self {
        let (metrics, handle) = recorded();
        let house = House::new();
        let intake = house.intake(metrics);
        Self { house, intake, metrics: handle }
    }

    fn counted(&self, outcome: &str) -> f64 {
        let label = format!("outcome=\"{outcome}\"");
        metric(&self.metrics, "polydelta_uploads_total", &[&label]).unwrap_or(0.0)
    }

    async fn open(&self, header: UploadHeader) -> OpenUpload {
        match self.intake.arrival(ClientKey::LOCAL).begin(header, Early::default()).await.unwrap() {
            UploadBegun::Open(upload) => upload,
            UploadBegun::Finished(published) => panic!("finished before: {published:?}"),
        }
    }

    /// An upload of which all files have come.
    async fn sent(&self, change: impl FnOnce(&mut UploadHeader)) -> OpenUpload {
        let files = contents(1);
        let mut header = header("sql", &files, None);
        change(&mut header);
        let mut upload = self.open(header).await;
        for (index, (_, content)) in files.into_iter().enumerate() {
            upload = upload.write(index, 0, content.into()).await.unwrap();
        }
        upload
    }

    fn state(&self) -> AdapterState {
        self.house.registry.get(&"sql".parse().unwrap()).unwrap().status.state
    }
}

#[tokio::test]
async fn compiling_keeps_its_turn_when_its_client_leaves() {
    let door = Door::new();
    let upload = door.sent(|_| ()).await;
    let (release, hold) = std::sync::mpsc::channel();
    *door.house.installer.hold.lock().unwrap() = Some(hold);
    let upload = tokio::spawn(upload.finish());
    while door.house.installer.checks.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    upload.abort();
    assert!(upload.await.is_err_and(|left| left.is_cancelled()));
    assert_eq!(door.intake.checks.available_permits(), 0);
    release.send(()).unwrap();
    drop(door.intake.checks.acquire().await.unwrap());
    assert_eq!((door.house.registry.len(), door.counted("interrupted")), (0, 1.0));
}

#[tokio::test]
async fn what_a_door_refuses_is_counted_apart_from_what_breaks_off() {
    let door = Door::new();
    door.intake.arrival(ClientKey::LOCAL).refuse();
    door.sent(|_| ()).await.refuse();
    drop(door.intake.arrival(ClientKey::LOCAL));
    drop(door.sent(|_| ()).await);
    assert_eq!((door.counted("rejected"), door.counted("interrupted")), (2.0, 2.0));
    assert_eq!(door.house.registry.uploads().open(), (0, 0));
}

#[tokio::test]
async fn an_upload_that_is_to_be_pinned_is_on_the_device_when_it_is_acknowledged() {
    let door = Door::new();
    let taken = door.sent(|header| header.pin = true).await.finish().await.unwrap();
    assert!(matches!(taken, Taken::Published(published) if published.created && published.adapter.pinned));
    assert_eq!(door.state(), AdapterState::Resident);
}

#[tokio::test]
async fn an_upload_that_cannot_be_brought_to_the_device_is_stored_and_not_pinned() {
    let door = Door::new();
    let upload = door.sent(|header| header.pin = true).await;
    door.house.installer.unloadable.store(true, SeqCst);
    upload.finish().await.unwrap();
    let info = door.house.registry.get(&"sql".parse().unwrap()).unwrap();
    assert_eq!((info.stored.pinned, info.status.state), (false, AdapterState::Stored));
}

#[tokio::test]
async fn what_is_loaded_by_name_is_pinned_only_once_it_is_there() {
    let door = Door::new();
    door.house.adapter("sql", 1);
    let name: AdapterName = "sql".parse().unwrap();
    let pinned = || door.house.registry.get(&name).unwrap().stored.pinned;
    door.house.installer.unloadable.store(true, SeqCst);
    door.intake.load(&name, Some(true), ClientKey::LOCAL).await.unwrap_err();
    assert!(!pinned());
    door.house.installer.unloadable.store(false, SeqCst);
    door.intake.load(&name, Some(true), ClientKey::LOCAL).await.unwrap();
    assert_eq!((pinned(), door.state()), (true, AdapterState::Resident));
    door.intake.load(&name, Some(false), ClientKey::LOCAL).await.unwrap();
    assert!(!pinned());
}

#[tokio::test]
async fn a_defect_in_a_check_refuses_its_upload_and_no_other() {
    let door = Door::new();
    let upload = door.sent(|_| ()).await;
    // Its sender is gone: the check panics on it.
    *door.house.installer.hold.lock().unwrap() = Some(std::sync::mpsc::channel().1);
    assert!(matches!(upload.finish().await, Err(IntakeError::Lost(Lost))));
    assert_eq!(door.counted("rejected"), 1.0);
    door.sent(|_| ()).await.finish().await.unwrap();
    assert_eq!(door.counted("created"), 1.0);
}
