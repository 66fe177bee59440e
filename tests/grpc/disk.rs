//! A store whose disk cannot read some of its files.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polydelta::adapters::{DiskFs, Found, StoreFile, StoreFs};
use polydelta::grpc::pb;
use tonic::Code;

use super::files::AdapterFiles;
use super::golden::{GoldenServer, case};
use super::harness::{Options, refusal};

const EIO: i32 = 5;

/// The disk, but for names, which cannot be read while it is `ill`.
struct Ill {
    ill: AtomicBool,
}

impl Ill {
    fn read(&self, path: &Path) -> io::Result<()> {
        let name = path.parent().is_some_and(|folder| folder.ends_with("names"));
        if name && self.ill.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }
}

impl StoreFs for Ill {
    fn metadata(&self, path: &Path) -> io::Result<Found> {
        DiskFs.metadata(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        DiskFs.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.read(path)?;
        DiskFs.open(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        DiskFs.lock(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DiskFs.create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>> {
        DiskFs.create_file(path)
    }

    fn make_private(&self, path: &Path) -> io::Result<()> {
        DiskFs.make_private(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskFs.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        DiskFs.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        DiskFs.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        DiskFs.remove_dir_all(path)
    }

    fn pause(&self, _: Duration) {}
}

/// All that is in a folder.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_name_that_cannot_be_read_is_unavailable_and_comes_back_with_the_disk() {
    let before = GoldenServer::start().await;
    let uploaded = before.upload("lora_r4", &AdapterFiles::golden("lora_r4")).await;
    let disk = Arc::new(Ill { ill: AtomicBool::new(true) });
    let options = Options { disk: Arc::clone(&disk) as Arc<dyn StoreFs>, ..Options::default() };
    copy(before.folder.path(), options.folder.path());
    let server = GoldenServer::with(options).await;
    let case = case("lora_r4/short");
    let unreadable = (Code::Unavailable, "ADAPTER_UNREADABLE".to_owned());
    let (mut generation, mut adapters) = (server.generation().await, server.adapters().await);
    let refused = generation.generate(case.request()).await.unwrap_err();
    assert_eq!(refusal(&refused), unreadable, "neither NOT_FOUND nor the base");
    let get = || pb::GetAdapterRequest { name: "lora_r4".into() };
    assert_eq!(refusal(&adapters.get_adapter(get()).await.unwrap_err()), unreadable);
    let load = pb::LoadAdapterRequest { name: "lora_r4".into(), pin: None };
    assert_eq!(refusal(&adapters.load_adapter(load).await.unwrap_err()), unreadable);
    let delete = pb::DeleteAdapterRequest { name: "lora_r4".into(), ..Default::default() };
    assert_eq!(refusal(&adapters.delete_adapter(delete).await.unwrap_err()), unreadable);
    let other = pb::GenerateRequest { adapter: "nobody".into(), ..case.request() };
    assert_eq!(generation.generate(other).await.unwrap_err().code(), Code::NotFound, "nobody else is concerned");
    assert_eq!((server.registry.heal(), server.registry.unreadable()), (0, 1));

    disk.ill.store(false, Ordering::SeqCst);
    assert_eq!((server.registry.heal(), server.registry.unreadable()), (1, 0));
    let answer = generation.generate(case.request()).await.unwrap().into_inner();
    assert_eq!(answer.choices[0].token_ids, case.ids);
    let found = adapters.get_adapter(get()).await.unwrap().into_inner().adapter.unwrap();
    assert_eq!(found.version, uploaded.version);
}
