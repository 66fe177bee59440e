//! Which adapters exist and which are on the device: uploads, store, registry, leases, residency.
//!
//! This room decides by names, sizes and digests. It never sees a tensor, never waits asynchronously and knows no
//! protocol: its calls block on the disk or answer at once, and [`AdapterObserver`] tells others when to ask again.
//!
//! | part | job |
//! |---|---|
//! | [`files`] | the header of an upload, what may be in it, the digest that names the result |
//! | [`uploads`] | chunks in, verified and synced files out; resumption, idempotency |
//! | [`store`] | the durable home: names and objects; crash recovery |
//! | [`registry`] | names to versions; publish, replace, delete; the front door of this room |
//! | [`lease`] | keeps a version loadable while a request lives |
//! | [`residency`] | who is on the device, who waits, who leaves |
//! | [`events`] | what happened, for watchers; hooks for those who wait |
//! | [`look`] | what lies in a local folder |
//! | [`import`] | adapters from a local folder |

mod budget;
mod catalog;
mod disk;
mod disk_fault;
mod error;
pub mod events;
mod eviction;
pub mod files;
mod fs;
pub mod import;
pub mod lease;
pub mod look;
mod pins;
mod problem;
mod published;
pub mod registry;
pub mod residency;
mod slots;
pub mod store;
mod stored;
mod sync;
#[cfg(test)]
pub(crate) mod testing;
mod upload_id;
pub mod uploads;

pub use disk_fault::DiskFault;
pub use error::{AdapterError, LoadFailure};
pub use events::{AdapterEvent, AdapterEventKind, AdapterObserver, EventLog, EventsLost};
pub use files::{
    ADAPTERHUB_WEIGHTS_FILE, CHAT_TEMPLATE_FILE, CONFIG_FILE, Expected, FileHeader, MAX_CHUNK_BYTES, StoreLimits,
    StoredFile, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, UploadHeader, WEIGHTS_FILE,
};
pub use fs::{DiskFs, Found, FoundKind, StoreFile, StoreFs};
pub use lease::{AdapterLease, Content, MixPart};
pub use pins::PinLimits;
pub use published::Published;
pub use registry::{
    AdapterInfo, AdapterRegistry, OwnChatTemplate, OwnTokensFile, RegistryLimits, ResolvedAdapter, ResolvedMix,
    ResolvedPart,
};
pub use residency::{
    Acquire, AdapterState, InstallTicket, LoadTicket, RemovalTicket, Residency, ResidencyLimits, ResidencyStats,
    ResidentLease, SetAside, VersionStatus, Want,
};
pub use store::{
    AdapterStore, CheckedName, Flaw, FolderNames, FolderObjects, FolderStore, IdleStore, Mend, NameStore,
    NamelessObject, ObjectStore, OnStoreError, Quarantined, QuarantinedContent, QuarantinedEntry, RecoveryReport,
    RepairError, RepairWishes, StoreCheck, StoreFault, StoreOptions,
};
pub use stored::{AdapterBytes, Binding, Bound, Compiled, StoredAdapter};
pub use upload_id::{InvalidUploadId, UploadId};
pub use uploads::{
    Begin, FileProgress, Staged, TokenizerFiles, UploadHead, UploadSession, UploadStatus, Uploads, WeightsHead,
};
