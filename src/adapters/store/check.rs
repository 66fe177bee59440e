//! A store looked through to the last byte, while no server uses it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::{CONFIG_FILE, OPTIONAL_FILES, StoredFile, WEIGHTS_FILE, version_of};
use super::super::fs::{FoundKind, StoreFs};
use super::super::stored::StoredAdapter;
use super::layout::Layout;
use super::manifest::{self, MAX_MANIFEST_BYTES};
use super::recovery::StoreFault;
use super::survey::{Flaw, Survey, missing_files};
use crate::types::{AdapterVersion, Sha256Digest};

/// A name and whether its files are what was uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedName {
    /// The binding.
    pub adapter: StoredAdapter,
    /// What is wrong with its files.
    pub flaw: Option<Flaw>,
}

/// An object that no name refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamelessObject {
    /// Its version.
    pub version: AdapterVersion,
    /// Bytes of its files.
    pub bytes: u64,
    /// Since when, in ms since the Unix epoch, as far as a server has noticed.
    pub since_ms: Option<u64>,
    /// It lost its name when the names of the store were missing: no server removes it.
    pub keep: bool,
    /// What is wrong with its files.
    pub flaw: Option<Flaw>,
}

/// What an entry of the quarantine turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuarantinedContent {
    /// A binding; `salvaged`: its checksum fails, but name and version prove themselves.
    Manifest {
        /// The binding.
        adapter: Box<StoredAdapter>,
        /// Not intact.
        salvaged: bool,
    },
    /// The intact files of a version.
    Object {
        /// Which.
        version: AdapterVersion,
        /// Their bytes.
        bytes: u64,
    },
    /// Nothing that could be put back, and why.
    Other(String),
}

/// An entry of the quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedEntry {
    /// Its name there.
    pub entry: String,
    /// What it is.
    pub content: QuarantinedContent,
    /// The store has an intact one in its place.
    pub superseded: bool,
}

/// Everything in a store, verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreCheck {
    /// Names that can be read, in order.
    pub names: Vec<CheckedName>,
    /// Objects without a name.
    pub nameless: Vec<NamelessObject>,
    /// What was put aside.
    pub quarantine: Vec<QuarantinedEntry>,
    /// All that is not in order; nothing is there where the store is clean.
    pub problems: Vec<StoreFault>,
}

/// A store that no server uses. It is locked while this value lives.
pub struct IdleStore {
    pub(super) layout: Layout,
    pub(super) fs: Arc<dyn StoreFs>,
    _locks: Vec<File>,
}

/// What checking has found, with what repairing needs of it.
pub(super) struct Findings {
    pub(super) survey: Survey,
    pub(super) check: StoreCheck,
}

impl IdleStore {
    /// Lock the store in `root`.
    ///
    /// # Errors
    /// [`AdapterError::StoreLocked`], [`AdapterError::NotAFolder`], the disk.
    pub fn open(root: &Path, fs: Arc<dyn StoreFs>) -> Result<Self, AdapterError> {
        if !root.is_dir() {
            return Err(AdapterError::NotAFolder { path: root.to_owned() });
        }
        let layout = Layout::new(root);
        let locks = layout.lock_present(fs.as_ref(), &mut Patience::short())?;
        Ok(Self { layout, fs, _locks: locks })
    }

    /// Read and verify everything. Changes nothing. Blocks for as long as it takes to read all files.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn check(&self) -> Result<StoreCheck, AdapterError> {
        self.find().map(|findings| findings.check)
    }

    pub(super) fn find(&self) -> Result<Findings, AdapterError> {
        let mut patience = Patience::long();
        let survey = Survey::take(&self.layout, self.fs.as_ref(), &mut patience)?;
        let mut inspection = Inspection { store: self, survey: &survey, patience, check: StoreCheck::default() };
        let flaws = inspection.objects();
        inspection.names(&flaws);
        inspection.rest();
        inspection.quarantine(&flaws);
        let check = inspection.check;
        Ok(Findings { survey, check })
    }

    /// The files in an object's folder as they are.
    fn digest_files(&self, patience: &mut Patience, object: &Path) -> Result<Vec<StoredFile>, Flaw> {
        let fs = self.fs.as_ref();
        let unreadable = |error: std::io::Error| Flaw::Unreadable(error.to_string());
        let mut files = Vec::new();
        for name in [CONFIG_FILE, WEIGHTS_FILE].into_iter().chain(OPTIONAL_FILES) {
            let path = object.join(name);
            let found = patience.look(fs, &path).map_err(unreadable)?;
            match found.map(|found| found.kind) {
                Some(FoundKind::File) => {}
                // Whether there is to be one, the version says.
                _ if OPTIONAL_FILES.contains(&name) => continue,
                Some(_) => return Err(Flaw::Damaged(format!("{name} is not a regular file"))),
                None => return Err(Flaw::Missing(name.to_owned())),
            }
            let read = patience.stream(fs, &path, Sha256::new, |hasher, chunk| hasher.update(chunk));
            let (size, hasher) = read.map_err(unreadable)?;
            files.push(StoredFile { path: name.to_owned(), size, sha256: Sha256Digest(hasher.finalize().into()) });
        }
        Ok(files)
    }

    /// The files of an object, which are those of `version`. What is wrong is read twice.
    pub(super) fn verify(
        &self,
        patience: &mut Patience,
        object: &Path,
        version: AdapterVersion,
    ) -> Result<Vec<StoredFile>, Flaw> {
        let files = self.digest_files(patience, object)?;
        if let Some(whole) = those_of(version, &files) {
            return Ok(whole);
        }
        let again = self.digest_files(patience, object)?;
        if again == files {
            return Err(Flaw::Damaged("its files are not those that were uploaded".to_owned()));
        }
        those_of(version, &again).ok_or_else(|| Flaw::Unreadable("two reads gave different bytes".to_owned()))
    }
}

/// The files that are a version, of those that are there: a chat template in the folder of one that has none is no part
/// of it, nor are tokens.
fn those_of(version: AdapterVersion, there: &[StoredFile]) -> Option<Vec<StoredFile>> {
    let [template, tokens] = OPTIONAL_FILES;
    let without = |left_out: &[&str]| -> Vec<StoredFile> {
        there.iter().filter(|file| !left_out.contains(&file.path.as_str())).cloned().collect()
    };
    let sets = [without(&[]), without(&[template]), without(&[tokens]), without(&OPTIONAL_FILES)];
    sets.into_iter().find(|files| version_of(files) == version)
}

fn bytes(files: &[StoredFile]) -> u64 {
    files.iter().map(|file| file.size).sum()
}

/// Objects that are there, with what is wrong with them.
type ObjectFlaws = BTreeMap<AdapterVersion, Option<Flaw>>;

struct Inspection<'a> {
    store: &'a IdleStore,
    survey: &'a Survey,
    patience: Patience,
    check: StoreCheck,
}

impl Inspection<'_> {
    fn problem(&mut self, path: &Path, reason: impl Into<String>) {
        let entry = self.store.layout.shown(path);
        self.check.problems.push(StoreFault { entry, reason: reason.into() });
    }

    fn objects(&mut self) -> ObjectFlaws {
        let survey = self.survey;
        let named: HashSet<_> = survey.intact().map(|(_, adapter)| adapter.version).collect();
        let mut flaws = ObjectFlaws::new();
        for object in &survey.objects {
            let path = self.store.layout.objects.join(&object.entry);
            let Some(version) = object.version else {
                self.problem(&path, "not named as an object is");
                continue;
            };
            let flaw = match &object.flaw {
                Some(flaw) => Some(flaw.clone()),
                None => self.store.verify(&mut self.patience, &path, version).err(),
            };
            if let Some(flaw) = &flaw {
                self.problem(&path, flaw.to_string());
            }
            if !named.contains(&version) {
                self.nameless(&path, version, object.bytes, flaw.clone());
            }
            flaws.insert(version, flaw);
        }
        flaws
    }

    fn nameless(&mut self, path: &Path, version: AdapterVersion, bytes: u64, flaw: Option<Flaw>) {
        let known = self.survey.record.as_ref().ok().and_then(|record| record.nameless.get(&version)).copied();
        let names_lost = self.survey.missing.contains(&self.store.layout.names);
        let keep = names_lost || known.is_some_and(|known| known.keep);
        if keep && flaw.is_none() {
            self.problem(path, "has lost its name: give it one with --bind, or remove it");
        }
        let since_ms = known.map(|known| known.since_ms);
        self.check.nameless.push(NamelessObject { version, bytes, since_ms, keep, flaw });
    }

    fn names(&mut self, flaws: &ObjectFlaws) {
        let survey = self.survey;
        let mut names: Vec<CheckedName> = Vec::new();
        for (file, found) in &survey.names {
            let path = self.store.layout.names.join(file);
            match found {
                Err(flaw) => self.problem(&path, flaw.to_string()),
                Ok(adapter) => {
                    let flaw = match (flaws.get(&adapter.version), &survey.objects_unlisted) {
                        (Some(flaw), _) => flaw.clone(),
                        (None, Some(unlisted)) => Some(unlisted.clone()),
                        (None, None) => {
                            self.problem(&path, missing_files(&adapter.name));
                            Some(Flaw::Missing("the object".to_owned()))
                        }
                    };
                    names.push(CheckedName { adapter: adapter.clone(), flaw });
                }
            }
        }
        names.sort_by(|one, other| one.adapter.name.cmp(&other.adapter.name));
        self.check.names = names;
    }

    fn rest(&mut self) {
        let (survey, layout) = (self.survey, &self.store.layout);
        if survey.missing.contains(&layout.names) && !survey.objects.is_empty() {
            self.problem(&layout.names, "missing");
        }
        if let Some(flaw) = &survey.objects_unlisted {
            self.problem(&layout.objects, flaw.to_string());
        }
        if let Err(flaw) = &survey.record {
            self.problem(&layout.record, flaw.to_string());
        }
        for path in &survey.shared {
            self.problem(path, "others than its owner have rights to it");
        }
    }

    fn quarantine(&mut self, flaws: &ObjectFlaws) {
        let survey = self.survey;
        for entry in &survey.quarantine {
            let path = self.store.layout.quarantine.join(entry);
            let original = entry.split_once('-').map_or("", |(_, original)| original);
            let content = self.quarantined(&path, original);
            let superseded = match original.parse::<AdapterVersion>() {
                Ok(version) => matches!(flaws.get(&version), Some(None)),
                Err(_) => matches!(survey.names.get(original), Some(Ok(_))),
            };
            if !superseded {
                let reason = match &content {
                    QuarantinedContent::Manifest { adapter, .. } => {
                        format!("the name {} can be put back", adapter.name)
                    }
                    QuarantinedContent::Object { .. } => "intact files that can be put back".to_owned(),
                    QuarantinedContent::Other(reason) => reason.clone(),
                };
                self.problem(&path, reason);
            }
            self.check.quarantine.push(QuarantinedEntry { entry: entry.clone(), content, superseded });
        }
    }

    fn quarantined(&mut self, path: &Path, original: &str) -> QuarantinedContent {
        use QuarantinedContent as Q;
        if let Ok(version) = original.parse::<AdapterVersion>() {
            return match self.store.verify(&mut self.patience, path, version) {
                Ok(files) => Q::Object { version, bytes: bytes(&files) },
                Err(flaw) => Q::Other(flaw.to_string()),
            };
        }
        if !manifest::is_file_name(original) {
            return Q::Other("not of this store".to_owned());
        }
        let read = self.small_file(path);
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(flaw) => return Q::Other(flaw.to_string()),
        };
        match (manifest::decode(&bytes, original), manifest::salvage(&bytes, original)) {
            (Ok(adapter), _) => Q::Manifest { adapter: Box::new(adapter), salvaged: false },
            (Err(_), Some(adapter)) => Q::Manifest { adapter: Box::new(adapter), salvaged: true },
            (Err(error), None) => Q::Other(Flaw::Damaged(error.to_string()).to_string()),
        }
    }

    fn small_file(&mut self, path: &Path) -> Result<Vec<u8>, Flaw> {
        let fs = self.store.fs.as_ref();
        let unreadable = |error: std::io::Error| Flaw::Unreadable(error.to_string());
        let found = self.patience.metadata(fs, path).map_err(unreadable)?;
        if found.kind != FoundKind::File || found.bytes > MAX_MANIFEST_BYTES {
            return Err(Flaw::Damaged("not a manifest".to_owned()));
        }
        self.patience.read(fs, path, found.bytes).map_err(unreadable)
    }
}
