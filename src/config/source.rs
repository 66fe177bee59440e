//! Where a model or an adapter is: a folder, or a repository of the hub.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::checks::Checks;
use super::problem::ConfigProblem;
use super::serve_args::AdapterArgs;
use crate::types::AdapterName;

/// A repository of the hub, `ORG/NAME` or `ORG/NAME@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubRepository {
    /// `ORG/NAME`.
    pub name: String,
    /// Branch, tag or commit; `None` is the branch `main`.
    pub revision: Option<String>,
}

/// Text that names no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no repository of the hub: expected {}", HubRepository::FORM)]
pub struct InvalidRepository {
    /// What was given, shortened.
    pub given: String,
}

impl HubRepository {
    /// The form, for people.
    pub const FORM: &str = "hf:ORG/NAME or hf:ORG/NAME@REVISION";

    /// The branch that is followed where no revision is named.
    pub const BRANCH: &str = "main";

    /// What the hub calls the revision.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(Self::BRANCH)
    }
}

/// Both parts of a name become parts of a path and of an address.
fn is_part(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !part.is_empty() && part.len() <= 96 && part.bytes().all(allowed) && !part.starts_with('.')
}

fn is_revision(revision: &str) -> bool {
    revision.len() <= 128 && revision.split('/').all(is_part)
}

impl FromStr for HubRepository {
    type Err = InvalidRepository;

    /// Without the `hf:` in front.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let named = name.split_once('/').is_some_and(|(organization, name)| is_part(organization) && is_part(name));
        if named && revision.is_none_or(is_revision) {
            Ok(Self { name: name.to_owned(), revision: revision.map(str::to_owned) })
        } else {
            Err(InvalidRepository { given: text.chars().take(128).collect() })
        }
    }
}

impl fmt::Display for HubRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// Where an adapter is brought from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterSource {
    /// A folder.
    Dir(PathBuf),
    /// `hf:…`.
    Hub(HubRepository),
}

impl FromStr for AdapterSource {
    type Err = InvalidRepository;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("hf:") {
            Some(repository) => repository.parse().map(Self::Hub),
            None => Ok(Self::Dir(PathBuf::from(text))),
        }
    }
}

impl fmt::Display for AdapterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => dir.display().fmt(f),
            Self::Hub(repository) => write!(f, "hf:{repository}"),
        }
    }
}

/// Read every `--adapter`: a name, and a folder that must exist or a repository of the hub.
pub(super) fn adapter_sources(checks: &mut Checks, args: &AdapterArgs) -> Vec<(AdapterName, AdapterSource)> {
    const FLAG: &str = "--adapter";
    const EXPECTED: &str = "NAME=DIR or NAME=hf:ORG/REPO[@REVISION]";
    let mut adapters: Vec<(AdapterName, AdapterSource)> = Vec::new();
    for text in &args.adapters {
        let invalid = |expected| ConfigProblem::Invalid { flag: FLAG, value: text.clone(), expected };
        let Some((name, source)) = text.split_once('=') else {
            checks.report(invalid(EXPECTED));
            continue;
        };
        let source = source.parse::<AdapterSource>();
        match &source {
            // What is there and no adapter is said where it is looked at.
            Ok(AdapterSource::Dir(dir)) if !dir.exists() => {
                checks.report(ConfigProblem::NoFolder { flag: FLAG, path: dir.clone(), hint: String::new() });
            }
            Ok(_) => {}
            Err(_) => checks.report(invalid(EXPECTED)),
        }
        match name.parse::<AdapterName>() {
            Err(_) => checks.report(invalid(AdapterName::RULE)),
            Ok(name) if adapters.iter().any(|(other, _)| *other == name) => {
                checks.report(ConfigProblem::Duplicate { flag: FLAG, name: name.to_string() });
            }
            Ok(name) => adapters.extend(source.ok().map(|source| (name, source))),
        }
    }
    adapters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_read_with_and_without_a_revision() {
        for (text, name, revision) in [
            ("org/name", "org/name", "main"),
            ("Org-1/na.me_2", "Org-1/na.me_2", "main"),
            ("org/name@v1.0", "org/name", "v1.0"),
            ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
            (
                "org/name@0123456789abcdef0123456789abcdef01234567",
                "org/name",
                "0123456789abcdef0123456789abcdef01234567",
            ),
        ] {
            let repository: HubRepository = text.parse().unwrap();
            assert_eq!((repository.name.as_str(), repository.revision()), (name, revision));
            assert_eq!(repository.to_string(), text);
        }
        let long = format!("org/{}", "x".repeat(97));
        for bad in [
            "",
            "name",
            "org/",
            "/name",
            "org/name/more",
            "org/..",
            "../name",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/name@/a",
            "org/name@a b",
            "org/na me",
            "org/.name",
            "org/name@.x",
            "é/name",
            &long,
        ] {
            assert!(bad.parse::<HubRepository>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_begins_with_hf_is_of_the_hub_and_all_else_a_folder() {
        assert_eq!("./a".parse(), Ok(AdapterSource::Dir("./a".into())));
        assert_eq!("org/name".parse(), Ok(AdapterSource::Dir("org/name".into())));
        let AdapterSource::Hub(repository) = "hf:org/name@v2".parse().unwrap() else { panic!() };
        assert_eq!(repository.revision(), "v2");
        assert!("hf:name".parse::<AdapterSource>().is_err());
    }
}
