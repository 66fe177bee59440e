//! What is read from the process environment besides the `POLYDELTA_*` variables, which clap reads.

use std::ffi::OsString;
use std::path::PathBuf;

/// The variables polydelta looks at, taken once at start, so that everything behind it can be tested without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `NO_COLOR` is set and not empty (no-color.org).
    pub no_color: bool,
}

impl Environment {
    /// Of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        Self {
            home: set("HOME").map(PathBuf::from),
            data_home: set("XDG_DATA_HOME").map(PathBuf::from),
            no_color: set("NO_COLOR").is_some(),
        }
    }

    /// `$XDG_DATA_HOME/polydelta`, else `~/.local/share/polydelta`; `None` without either. The XDG base directory
    /// specification wants a relative `XDG_DATA_HOME` ignored.
    #[must_use]
    pub fn data_dir(&self) -> Option<PathBuf> {
        let xdg = self.data_home.clone().filter(|path| path.is_absolute());
        let base = xdg.or_else(|| self.home.as_ref().map(|home| home.join(".local/share")))?;
        Some(base.join("polydelta"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_follows_the_xdg_specification() {
        let environment = |data_home: Option<&str>, home: Option<&str>| Environment {
            home: home.map(PathBuf::from),
            data_home: data_home.map(PathBuf::from),
            no_color: false,
        };
        let folder = |data_home, home| environment(data_home, home).data_dir();
        assert_eq!(folder(Some("/data"), Some("/home/a")), Some("/data/polydelta".into()));
        assert_eq!(folder(Some("data"), Some("/home/a")), Some("/home/a/.local/share/polydelta".into()));
        assert_eq!(folder(None, Some("/home/a")), Some("/home/a/.local/share/polydelta".into()));
        assert_eq!(folder(None, None), None);
    }
}
