//! What happens when a store is opened. What can be read is served. What was read and is wrong beyond doubt is put into
//! quarantine; what cannot be read stays where it is, for it may be in order; what is absent is no reason to remove
//! what is there. An object without a name is removed only when every name can be read and it has had none for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use super::super::disk::Patience;
use super::super::disk_fault::DiskFault;
use super::super::error::AdapterError;
use super::super::fs::{FoundKind, StoreFs};
use super::super::stored::StoredAdapter;
use super::layout::Layout;
use super::options::{OnStoreError, StoreOptions};
use super::record::{Nameless, Record};
use super::survey::{Flaw, Survey, missing_files};
use super::write::write_record;
use crate::types::{AdapterVersion, Sha256Digest};

/// Something that was put into the quarantine folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name in the quarantine folder.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Something that could not be served, or done, and stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFault {
    /// Its place in the store.
    pub entry: String,
    /// What is the matter.
    pub reason: String,
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Names served.
    pub adapters: usize,
    /// Damaged or foreign entries, put aside.
    pub quarantined: Vec<Quarantined>,
    /// What cannot be read, is missing, or is of a later version. It is left as it is and tried again.
    pub faults: Vec<StoreFault>,
    /// Chores that the disk refused: they are done at the next start.
    pub undone: Vec<StoreFault>,
    /// Objects that no name refers to, kept.
    pub nameless: usize,
    /// Those of them that have lost their names, with the folder of names: kept until somebody decides.
    pub lost: usize,
    /// Objects that no name has referred to for a while, removed.
    pub removed_objects: usize,
    /// Unfinished uploads, removed.
    pub removed_uploads: usize,
}

/// Which objects stay, whatever becomes of the names that are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    All,
    These(HashSet<AdapterVersion>),
}

impl Held {
    pub(super) fn holds(&self, version: AdapterVersion) -> bool {
        match self {
            Self::All => true,
            Self::These(versions) => versions.contains(&version),
        }
    }
}

/// What a store starts with.
pub(super) struct Recovered {
    pub(super) names: Vec<StoredAdapter>,
    /// Manifests that stand for a name nobody knows now.
    pub(super) flawed: BTreeMap<String, Flaw>,
    /// Versions whose files are there, under a name.
    pub(super) objects: HashSet<AdapterVersion>,
    /// Bytes of the objects without a name.
    pub(super) nameless: HashMap<AdapterVersion, u64>,
    /// Versions that are not removed even when their last known name goes: another name may be bound to them.
    pub(super) held: Held,
    pub(super) record: Result<Record, Flaw>,
    pub(super) report: RecoveryReport,
}

pub(super) fn recover(
    layout: &Layout,
    fs: &dyn StoreFs,
    options: &StoreOptions,
    patience: &mut Patience,
) -> Result<Recovered, AdapterError> {
    let survey = Survey::take(layout, fs, patience)?;
    let mut recovery = Recovery { layout, fs, patience, report: RecoveryReport::default(), touched: BTreeSet::new() };
    recovery.note_faults(&survey);
    let names_lost = survey.missing.contains(&layout.names) && !survey.objects.is_empty();
    if options.errors == OnStoreError::Refuse {
        recovery.refuse(&survey, names_lost)?;
    }
    recovery.prepare(&survey)?;
    recovery.quarantine_damaged(&survey);
    let doubt = survey.in_doubt() || names_lost;
    let record = recovery.settle_nameless(&survey, names_lost, doubt, options);
    recovery.sync();
    Ok(recovery.finish(survey, record, doubt))
}

struct Recovery<'a> {
    layout: &'a Layout,
    fs: &'a dyn StoreFs,
    patience: &'a mut Patience,
    report: RecoveryReport,
    /// Folders whose entries have changed.
    touched: BTreeSet<std::path::PathBuf>,
}

impl Recovery<'_> {
    // --- what was found -------------------------------------------------------------------------------------------

    fn note_faults(&mut self, survey: &Survey) {
        let (names, objects) = (&self.layout.names, &self.layout.objects);
        let present: HashSet<_> = survey.objects.iter().filter_map(|object| object.version).collect();
        let mut faults = Vec::new();
        for (file, found) in &survey.names {
            match found {
                Err(Flaw::Damaged(_)) => {}
                Err(flaw) => faults.push((names.join(file), flaw.to_string())),
                Ok(adapter) if !present.contains(&adapter.version) && survey.objects_unlisted.is_none() => {
                    faults.push((names.join(file), missing_files(&adapter.name)));
                }
                Ok(_) => {}
            }
        }
        for object in &survey.objects {
            if let Some(flaw @ (Flaw::Unreadable(_) | Flaw::Missing(_))) = &object.flaw {
                faults.push((objects.join(&object.entry), flaw.to_string()));
            }
        }
        faults.extend(survey.objects_unlisted.iter().map(|flaw| (objects.clone(), flaw.to_string())));
        if let Err(flaw @ (Flaw::Unreadable(_) | Flaw::Newer(_))) = &survey.record {
            faults.push((self.layout.record.clone(), flaw.to_string()));
        }
        for (path, reason) in faults {
            let entry = self.layout.shown(&path);
            self.report.faults.push(StoreFault { entry, reason });
        }
    }

    /// Nothing has been changed yet.
    fn refuse(&self, survey: &Survey, names_lost: bool) -> Result<(), AdapterError> {
        let root = self.layout.root.clone();
        if names_lost {
            return Err(AdapterError::NamesMissing { root, objects: survey.objects.len() });
        }
        match self.report.faults.as_slice() {
            [] => Ok(()),
            faults @ [first, ..] => Err(AdapterError::StoreUnreadable {
                root,
                count: faults.len(),
                first: format!("{}: {}", first.entry, first.reason),
            }),
        }
    }

    // --- changes, none of which must succeed ----------------------------------------------------------------------

    /// A store that cannot be written is served all the same; anything that needs its folders says so then.
    fn prepare(&mut self, survey: &Survey) -> Result<(), AdapterError> {
        for folder in &survey.missing {
            match self.fs.create_dir(folder) {
                Ok(()) => drop(self.touched.insert(self.layout.root.clone())),
                Err(error) if DiskFault::of(&error) == DiskFault::ReadOnly => self.undone(folder, &error),
                Err(error) => return Err(AdapterError::io("creating a folder of the store")(error)),
            }
        }
        for path in &survey.shared {
            if let Err(error) = self.fs.make_private(path) {
                self.undone(path, &error);
            }
        }
        for path in &survey.leftovers {
            match self.remove(path) {
                Ok(()) => self.report.removed_uploads += usize::from(path.starts_with(&self.layout.staging)),
                Err(error) => self.undone(path, &error),
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        match self.patience.look(self.fs, path)?.map(|found| found.kind) {
            None => Ok(()),
            Some(FoundKind::Folder) => self.fs.remove_dir_all(path),
            Some(_) => self.fs.remove_file(path),
        }
    }

    fn undone(&mut self, path: &Path, error: &io::Error) {
        let entry = self.layout.shown(path);
        self.report.undone.push(StoreFault { entry, reason: error.to_string() });
    }

    fn quarantine_damaged(&mut self, survey: &Survey) {
        for (file, found) in &survey.names {
            if let Err(Flaw::Damaged(reason)) = found {
                self.quarantine(&self.layout.names.join(file), reason);
            }
        }
        for object in &survey.objects {
            if let Some(Flaw::Damaged(reason)) = &object.flaw {
                self.quarantine(&self.layout.objects.join(&object.entry), reason);
            }
        }
        if let Err(Flaw::Damaged(reason)) = &survey.record {
            self.quarantine(&self.layout.record.clone(), reason);
        }
    }

    fn quarantine(&mut self, path: &Path, reason: &str) {
        match put_aside(self.layout, self.fs, self.patience, path) {
            Ok(entry) => {
                tracing::error!(entry, reason, "a damaged entry of the store was put into quarantine");
                self.touched.extend(path.parent().map(Path::to_owned));
                self.touched.insert(self.layout.quarantine.clone());
                self.report.quarantined.push(Quarantined { entry, reason: reason.to_owned() });
            }
            Err(error) => self.undone(path, &error),
        }
    }

    /// Bring the record of objects without a name up to date, and remove those whose time is over.
    fn settle_nameless(
        &mut self,
        survey: &Survey,
        names_lost: bool,
        doubt: bool,
        options: &StoreOptions,
    ) -> Result<Record, Flaw> {
        let mut record = match &survey.record {
            Ok(record) => record.clone(),
            Err(Flaw::Damaged(_)) => Record::default(),
            Err(flaw) => return Err(flaw.clone()),
        };
        if doubt && !names_lost {
            return Ok(record);
        }
        let named: HashSet<_> = survey.intact().map(|(_, adapter)| adapter.version).collect();
        let now = options.now_ms;
        let mut nameless = BTreeMap::new();
        for object in survey.objects.iter().filter(|object| object.flaw.is_none()) {
            let Some(version) = object.version.filter(|version| !named.contains(version)) else { continue };
            let before = record.nameless.get(&version).copied();
            let mut entry = before.unwrap_or(Nameless { since_ms: now, keep: names_lost });
            // The clock was set back.
            entry.since_ms = entry.since_ms.min(now);
            let over = !entry.keep && !doubt && now - entry.since_ms > options.grace_ms();
            if over && before.is_some() && self.remove_object(version) {
                continue;
            }
            nameless.insert(version, entry);
        }
        if nameless != record.nameless {
            record.nameless = nameless;
            let written = write_record(self.layout, self.fs, &record);
            if let Err(error) = written {
                self.undone(&self.layout.record.clone(), &io::Error::other(error));
            }
        }
        Ok(record)
    }

    fn remove_object(&mut self, version: AdapterVersion) -> bool {
        let (object, away) = (self.layout.object(version), self.layout.staging.join(format!("old-{version}")));
        // Out of the way first, so that no object is ever half there.
        let removed = self.fs.rename(&object, &away).and_then(|()| {
            self.touched.insert(self.layout.objects.clone());
            self.fs.remove_dir_all(&away)
        });
        match removed {
            Ok(()) => self.report.removed_objects += 1,
            Err(error) => self.undone(&object, &error),
        }
        self.fs.metadata(&object).is_err()
    }

    fn sync(&mut self) {
        for folder in std::mem::take(&mut self.touched) {
            if let Err(error) = self.fs.sync_dir(&folder) {
                self.undone(&folder, &error);
            }
        }
    }

    // --- the result -----------------------------------------------------------------------------------------------

    fn finish(mut self, survey: Survey, record: Result<Record, Flaw>, doubt: bool) -> Recovered {
        let gone = |object: &super::survey::ObjectEntry| matches!(object.flaw, Some(Flaw::Damaged(_)));
        let there: HashMap<_, _> = survey
            .objects
            .iter()
            .filter(|object| !gone(object))
            .filter_map(|object| Some((object.version?, object.bytes)))
            .collect();
        // Not listed is not absent.
        let unlisted = survey.objects_unlisted.is_some();
        let (mut names, mut flawed) = (Vec::new(), BTreeMap::new());
        for (file, found) in survey.names {
            match found {
                Ok(adapter) => names.push((file, adapter)),
                Err(Flaw::Damaged(_)) => {}
                Err(flaw) => drop(flawed.insert(file, flaw)),
            }
        }
        let objects: HashSet<_> = names
            .iter()
            .map(|(_, adapter)| adapter.version)
            .filter(|version| unlisted || there.contains_key(version))
            .collect();
        // Whose an adapter of the first format is, only the record knows.
        if let Err(flaw) = &record {
            for (file, _) in names.extract_if(.., |(_, adapter)| adapter.compiled.is_none()) {
                flawed.insert(file, flaw.clone());
            }
        }
        let is_left = |version: &AdapterVersion| self.fs.metadata(&self.layout.object(*version)).is_ok();
        let nameless: HashMap<_, _> = there
            .iter()
            .filter(|(version, _)| !objects.contains(version) && (doubt || is_left(version)))
            .map(|(version, bytes)| (*version, *bytes))
            .collect();
        // A record that could not be written down does not make them less lost.
        let kept = |version: &AdapterVersion| {
            record.as_ref().is_ok_and(|record| record.nameless.get(version).is_some_and(|nameless| nameless.keep))
        };
        self.report.lost = nameless.keys().filter(|version| kept(version)).count();
        let held = match doubt {
            true if unlisted => Held::All,
            true => Held::These(there.into_keys().collect()),
            false => {
                let kept = record.iter().flat_map(|record| &record.nameless).filter(|(_, nameless)| nameless.keep);
                Held::These(kept.map(|(version, _)| *version).collect())
            }
        };
        self.report.nameless = nameless.len();
        self.report.adapters = names.len();
        let names = names.into_iter().map(|(_, adapter)| adapter).collect();
        Recovered { names, flawed, objects, nameless, held, record, report: self.report }
    }
}

/// Move an entry into the quarantine folder; returns its name there.
pub(super) fn put_aside(layout: &Layout, fs: &dyn StoreFs, patience: &mut Patience, path: &Path) -> io::Result<String> {
    let original = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = original.len() <= 100
        && original.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let label = if plain { original } else { Sha256Digest::of(original.as_bytes()).to_string() };
    let mut number = 1;
    let entry = loop {
        let entry = format!("{number}-{label}");
        if patience.look(fs, &layout.quarantine.join(&entry))?.is_none() {
            break entry;
        }
        number += 1;
    };
    fs.rename(path, &layout.quarantine.join(&entry))?;
    Ok(entry)
}
