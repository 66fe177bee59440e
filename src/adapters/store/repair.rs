//! Mending a store that no server uses: a plan first, which changes nothing, then its steps one by one. Nothing is
//! removed but what the operator names.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::fs::FoundKind;
use super::super::stored::StoredAdapter;
use super::check::{Findings, IdleStore, QuarantinedContent, QuarantinedEntry};
use super::manifest;
use super::recovery::put_aside;
use super::survey::Flaw;
use super::write::put_in_place;
use crate::types::{AdapterName, AdapterVersion};

/// What the operator wants beyond what mends itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairWishes {
    /// Names for objects that have lost theirs.
    pub bind: Vec<(AdapterName, AdapterVersion)>,
    /// Entries to remove, as a check names them, or `quarantine` or `nameless` for all of a kind.
    pub remove: Vec<String>,
}

/// Why a wish cannot be granted.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The store.
    #[error(transparent)]
    Store(#[from] AdapterError),
    /// No entry that may be removed.
    #[error("{entry:?} is neither an entry of the quarantine nor an object without a name")]
    NotRemovable {
        /// As given.
        entry: String,
    },
    /// The version has a name, is not there, or is damaged.
    #[error("version {version} is not an intact object without a name")]
    NotNameless {
        /// As given.
        version: AdapterVersion,
    },
    /// The name means something.
    #[error("the name {name} is bound already")]
    NameTaken {
        /// As given.
        name: AdapterName,
    },
}

/// One step of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// Create a folder of the store.
    CreateFolder(PathBuf),
    /// Put a damaged entry into quarantine.
    SetAside(PathBuf, String),
    /// Move an intact entry of the quarantine to its place.
    PutBack(PathBuf, PathBuf),
    /// Write a binding.
    Bind(Box<StoredAdapter>),
    /// Take the rights of others.
    MakePrivate(PathBuf),
    /// Remove what unfinished work has left behind.
    Tidy(PathBuf),
    /// Remove for good.
    Remove(PathBuf),
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateFolder(path) => write!(f, "create {}", path.display()),
            Self::SetAside(path, reason) => write!(f, "put {} into quarantine: {reason}", path.display()),
            Self::PutBack(from, to) => write!(f, "put {} back as {}", from.display(), to.display()),
            Self::Bind(adapter) => write!(f, "bind {} to {}", adapter.name, adapter.version),
            Self::MakePrivate(path) => write!(f, "leave {} to its owner alone", path.display()),
            Self::Tidy(path) => write!(f, "remove the leftover {}", path.display()),
            Self::Remove(path) => write!(f, "remove {} for good", path.display()),
        }
    }
}

impl IdleStore {
    /// What would mend the store. Changes nothing; verifies everything, as a check does.
    ///
    /// # Errors
    /// A wish that cannot be granted, a folder that cannot be listed.
    pub fn plan(&self, wishes: &RepairWishes, now_ms: u64) -> Result<Vec<Mend>, RepairError> {
        let findings = self.find()?;
        let mut plan = Plan { store: self, findings: &findings, back: HashSet::new(), mends: Vec::new() };
        plan.folders();
        let objects = plan.objects();
        plan.names(&objects);
        plan.bind(&wishes.bind, now_ms)?;
        plan.tidy();
        plan.remove(&wishes.remove)?;
        Ok(plan.mends)
    }

    /// Carry out a plan, durably. A step that fails ends it; what was done is whole, and a new plan has the rest.
    ///
    /// # Errors
    /// The disk.
    pub fn carry_out(&self, mends: &[Mend]) -> Result<(), AdapterError> {
        let mut touched = BTreeSet::new();
        let result = mends.iter().try_for_each(|mend| self.mend(mend, &mut touched));
        let synced = touched.iter().try_for_each(|folder| self.fs.sync_dir(folder));
        result.and(synced.map_err(AdapterError::io("syncing the store")))
    }

    fn mend(&self, mend: &Mend, touched: &mut BTreeSet<PathBuf>) -> Result<(), AdapterError> {
        let (fs, io) = (self.fs.as_ref(), AdapterError::io);
        let inside = |path: &Path| self.layout.root.join(path);
        let mut touch = |path: &Path| touched.extend(path.parent().map(Path::to_owned));
        match mend {
            Mend::CreateFolder(path) => {
                touch(&inside(path));
                fs.create_dir(&inside(path)).map_err(io("creating a folder of the store"))
            }
            Mend::SetAside(path, _) => {
                touch(&inside(path));
                let aside = put_aside(&self.layout, fs, &mut Patience::short(), &inside(path));
                let entry = aside.map_err(io("putting a damaged entry aside"))?;
                touch(&self.layout.quarantine.join(entry));
                Ok(())
            }
            Mend::PutBack(from, to) => {
                touch(&inside(from));
                touch(&inside(to));
                fs.rename(&inside(from), &inside(to)).map_err(io("putting an entry back"))
            }
            Mend::Bind(adapter) => {
                let bytes = manifest::encode(adapter)
                    .map_err(|source| AdapterError::Encoding { what: "a manifest", source })?;
                let file = manifest::file_name(&adapter.name);
                touch(&self.layout.names.join(&file));
                put_in_place(fs, &self.layout.names, &file, &bytes)
            }
            Mend::MakePrivate(path) => fs.make_private(&inside(path)).map_err(io("taking the rights of others")),
            Mend::Tidy(path) | Mend::Remove(path) => {
                let path = inside(path);
                touch(&path);
                let found = fs.metadata(&path).map_err(io("looking at an entry"))?;
                match found.kind {
                    FoundKind::Folder => fs.remove_dir_all(&path),
                    _ => fs.remove_file(&path),
                }
                .map_err(io("removing an entry"))
            }
        }
    }
}

struct Plan<'a> {
    store: &'a IdleStore,
    findings: &'a Findings,
    /// Entries of the quarantine that leave it.
    back: HashSet<String>,
    mends: Vec<Mend>,
}

impl Plan<'_> {
    /// A path within the store.
    fn within(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.store.layout.root).unwrap_or(path).to_owned()
    }

    fn push(&mut self, mend: impl FnOnce(PathBuf) -> Mend, path: &Path) {
        let path = self.within(path);
        self.mends.push(mend(path));
    }

    fn quarantined(&self) -> impl Iterator<Item = &QuarantinedEntry> + use<'_> {
        self.findings.check.quarantine.iter().filter(|entry| !entry.superseded)
    }

    fn folders(&mut self) {
        for path in &self.findings.survey.missing {
            self.push(Mend::CreateFolder, path);
        }
    }

    /// The versions whose files are whole in the end.
    fn objects(&mut self) -> HashSet<AdapterVersion> {
        let layout = &self.store.layout;
        let mut intact: HashSet<AdapterVersion> = HashSet::new();
        let mut broken: BTreeMap<String, String> = BTreeMap::new();
        let (check, survey) = (&self.findings.check, &self.findings.survey);
        for (version, flaw) in check
            .names
            .iter()
            .map(|name| (name.adapter.version, &name.flaw))
            .chain(check.nameless.iter().map(|object| (object.version, &object.flaw)))
        {
            match flaw {
                None => drop(intact.insert(version)),
                Some(Flaw::Damaged(reason)) => drop(broken.insert(version.to_string(), reason.clone())),
                Some(_) => {}
            }
        }
        for object in survey.objects.iter().filter(|object| object.version.is_none()) {
            broken.insert(object.entry.clone(), "not named as an object is".to_owned());
        }
        for (entry, reason) in broken {
            self.push(|path| Mend::SetAside(path, reason), &layout.objects.join(entry));
        }
        let back: Vec<_> = self
            .quarantined()
            .filter_map(|entry| match entry.content {
                QuarantinedContent::Object { version, .. } => Some((entry.entry.clone(), version)),
                _ => None,
            })
            .collect();
        let unlistable = survey.objects_unlisted.is_some();
        for (entry, version) in back {
            // What is there but not readable may be in order.
            let occupied = survey
                .objects
                .iter()
                .any(|object| object.version == Some(version) && !matches!(object.flaw, Some(Flaw::Damaged(_))));
            let damaged =
                |mend: &Mend| matches!(mend, Mend::SetAside(path, _) if *path == self.within(&layout.object(version)));
            if unlistable || (occupied && !self.mends.iter().any(damaged)) || !intact.insert(version) {
                continue;
            }
            let (from, to) = (layout.quarantine.join(&entry), layout.object(version));
            self.mends.push(Mend::PutBack(self.within(&from), self.within(&to)));
            self.back.insert(entry);
        }
        intact
    }

    fn names(&mut self, objects: &HashSet<AdapterVersion>) {
        let (layout, survey) = (&self.store.layout, &self.findings.survey);
        let mut place_of: BTreeMap<String, (Option<String>, StoredAdapter, bool)> = BTreeMap::new();
        let mut damaged = Vec::new();
        for (file, found) in &survey.names {
            if let Err(Flaw::Damaged(reason)) = found {
                damaged.push((file.clone(), reason.clone()));
                if let Some(adapter) = self.salvage(file).filter(|adapter| objects.contains(&adapter.version)) {
                    place_of.insert(file.clone(), (None, adapter, true));
                }
            }
        }
        for entry in self.quarantined() {
            let QuarantinedContent::Manifest { adapter, salvaged } = &entry.content else { continue };
            let file = manifest::file_name(&adapter.name);
            // What is there but not readable, or of a later version, may be in order.
            let occupied = matches!(survey.names.get(&file), Some(Err(flaw)) if !matches!(flaw, Flaw::Damaged(_)));
            let newer = |(_, other, damaged): &(_, StoredAdapter, bool)| {
                (!salvaged, adapter.created_ms) > (!damaged, other.created_ms)
            };
            if !occupied && objects.contains(&adapter.version) && place_of.get(&file).is_none_or(newer) {
                place_of.insert(file, (Some(entry.entry.clone()), (**adapter).clone(), *salvaged));
            }
        }
        for (file, reason) in damaged {
            self.push(|path| Mend::SetAside(path, reason), &layout.names.join(file));
        }
        for (file, (entry, adapter, salvaged)) in place_of {
            match entry.filter(|_| !salvaged) {
                Some(entry) => {
                    let (from, to) = (layout.quarantine.join(&entry), layout.names.join(file));
                    self.mends.push(Mend::PutBack(self.within(&from), self.within(&to)));
                    self.back.insert(entry);
                }
                None => self.mends.push(Mend::Bind(Box::new(adapter))),
            }
        }
        if let Err(Flaw::Damaged(reason)) = &survey.record {
            self.push(|path| Mend::SetAside(path, reason.clone()), &layout.record);
        }
    }

    fn salvage(&self, file: &str) -> Option<StoredAdapter> {
        let (fs, path) = (self.store.fs.as_ref(), self.store.layout.names.join(file));
        let found = fs.metadata(&path).ok().filter(|found| found.bytes <= manifest::MAX_MANIFEST_BYTES)?;
        manifest::salvage(&Patience::short().read(fs, &path, found.bytes).ok()?, file)
    }

    fn bind(&mut self, wishes: &[(AdapterName, AdapterVersion)], now_ms: u64) -> Result<(), RepairError> {
        for (name, version) in wishes {
            let (name, version) = (name.clone(), *version);
            let planned = |mend: &Mend| matches!(mend, Mend::Bind(adapter) if adapter.name == name);
            let bound = self.findings.check.names.iter().any(|checked| checked.adapter.name == name);
            if bound || self.mends.iter().any(planned) {
                return Err(RepairError::NameTaken { name });
            }
            let nameless = &self.findings.check.nameless;
            if !nameless.iter().any(|object| object.version == version && object.flaw.is_none()) {
                return Err(RepairError::NotNameless { version });
            }
            let object = self.store.layout.object(version);
            let files = self.store.verify(&mut Patience::short(), &object, version);
            let files = files.map_err(|_| RepairError::NotNameless { version })?;
            let adapter = StoredAdapter { name, version, files, created_ms: now_ms, pinned: false, compiled: None };
            self.mends.push(Mend::Bind(Box::new(adapter)));
        }
        Ok(())
    }

    fn tidy(&mut self) {
        let survey = &self.findings.survey;
        for path in &survey.shared {
            self.push(Mend::MakePrivate, path);
        }
        for path in &survey.leftovers {
            self.push(Mend::Tidy, path);
        }
    }

    fn remove(&mut self, wishes: &[String]) -> Result<(), RepairError> {
        let bound: HashSet<_> = self
            .mends
            .iter()
            .filter_map(|mend| match mend {
                Mend::Bind(adapter) => Some(adapter.version),
                _ => None,
            })
            .collect();
        let check = &self.findings.check;
        let quarantine: Vec<_> = check
            .quarantine
            .iter()
            .filter(|entry| !self.back.contains(&entry.entry))
            .map(|entry| PathBuf::from("quarantine").join(&entry.entry))
            .collect();
        let nameless: Vec<_> = check
            .nameless
            .iter()
            .filter(|object| !bound.contains(&object.version) && !matches!(object.flaw, Some(Flaw::Damaged(_))))
            .map(|object| PathBuf::from("objects").join(object.version.to_string()))
            .collect();
        let mut remove = BTreeSet::new();
        for entry in wishes {
            let path = PathBuf::from(entry);
            match entry.as_str() {
                "quarantine" => remove.extend(quarantine.iter().cloned()),
                "nameless" => remove.extend(nameless.iter().cloned()),
                _ if quarantine.contains(&path) || nameless.contains(&path) => drop(remove.insert(path)),
                _ => return Err(RepairError::NotRemovable { entry: entry.clone() }),
            }
        }
        self.mends.extend(remove.into_iter().map(Mend::Remove));
        Ok(())
    }
}
