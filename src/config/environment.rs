//! What is read from the process environment besides the `POLYDELTA_*` variables, which clap reads.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// The variables polydelta looks at, taken once at start, so that everything behind it can be tested without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`.
    pub cache_home: Option<PathBuf>,
    /// Names of the `POLYDELTA_*` variables that are set.
    pub own: Vec<String>,
    /// `TERM` is `dumb`: lines can be neither drawn over nor coloured.
    pub dumb_terminal: bool,
    /// `COLUMNS`, a number above 0.
    pub columns: Option<usize>,
    /// `NO_COLOR` is set and not empty (no-color.org).
    pub no_color: bool,
    /// The variables of the Hugging Face hub's own tools.
    pub hub: HubEnvironment,
    /// Where CUDA's libraries may lie.
    pub cuda: CudaEnvironment,
}

/// Folders that hold CUDA's libraries in places of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaEnvironment {
    /// `CUDA_HOME` and `CUDA_PATH`, of a toolkit.
    pub toolkits: Vec<PathBuf>,
    /// `VIRTUAL_ENV` and `CONDA_PREFIX`, of Python environments, whose wheels bring the libraries.
    pub python: Vec<PathBuf>,
}

/// Variables of the Hugging Face hub's own tools, so that a machine set up for those is set up for polydelta.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HubEnvironment {
    /// `HF_HOME`.
    pub home: Option<PathBuf>,
    /// `HF_HUB_CACHE`.
    pub cache: Option<PathBuf>,
    /// `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `HF_TOKEN`; not shown by `Debug`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE` is 1, on, yes or true.
    pub offline: bool,
}

impl fmt::Debug for HubEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubEnvironment")
            .field("home", &self.home)
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl Environment {
    /// Of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        Self {
            home: set("HOME").map(PathBuf::from),
            data_home: set("XDG_DATA_HOME").map(PathBuf::from),
            cache_home: set("XDG_CACHE_HOME").map(PathBuf::from),
            own: std::env::vars_os()
                .filter_map(|(name, _)| name.into_string().ok())
                .filter(|name| is_own(name))
                .collect(),
            dumb_terminal: text("TERM").is_some_and(|term| term == "dumb"),
            columns: text("COLUMNS").and_then(|columns| columns.trim().parse().ok()).filter(|columns| *columns > 0),
            no_color: set("NO_COLOR").is_some(),
            hub: HubEnvironment {
                home: set("HF_HOME").map(PathBuf::from),
                cache: set("HF_HUB_CACHE").map(PathBuf::from),
                endpoint: text("HF_ENDPOINT"),
                token: text("HF_TOKEN"),
                offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            },
            cuda: CudaEnvironment {
                toolkits: ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set).map(PathBuf::from).collect(),
                python: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).map(PathBuf::from).collect(),
            },
        }
    }

    /// `$XDG_CACHE_HOME/polydelta`, else `~/.cache/polydelta`; `None` without either. A relative `XDG_CACHE_HOME` is
    /// ignored, as in [`Environment::data_dir`].
    #[must_use]
    pub fn cache_dir(&self) -> Option<PathBuf> {
        let xdg = self.cache_home.clone().filter(|path| path.is_absolute());
        let base = xdg.or_else(|| self.home.as_ref().map(|home| home.join(".cache")))?;
        Some(base.join("polydelta"))
    }

    /// Home of the hub's tools: `HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`.
    #[must_use]
    pub fn hub_home(&self) -> Option<PathBuf> {
        let cache = || self.cache_home.clone().or_else(|| Some(self.home.as_ref()?.join(".cache")));
        self.hub.home.clone().or_else(|| Some(cache()?.join("huggingface")))
    }

    /// The hub's cache: `HF_HUB_CACHE`, else `hub` in [`Environment::hub_home`].
    #[must_use]
    pub fn hub_cache(&self) -> Option<PathBuf> {
        self.hub.cache.clone().or_else(|| Some(self.hub_home()?.join("hub")))
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

fn is_own(name: &str) -> bool {
    name.starts_with("POLYDELTA_")
}

/// As the hub's tools read a switch.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_follow_the_xdg_specification() {
        let environment = |data_home: Option<&str>, home: Option<&str>| Environment {
            home: home.map(PathBuf::from),
            data_home: data_home.map(PathBuf::from),
            ..Environment::default()
        };
        let folder = |data_home, home| environment(data_home, home).data_dir();
        assert_eq!(folder(Some("/data"), Some("/home/a")), Some("/data/polydelta".into()));
        assert_eq!(folder(Some("data"), Some("/home/a")), Some("/home/a/.local/share/polydelta".into()));
        assert_eq!(folder(None, Some("/home/a")), Some("/home/a/.local/share/polydelta".into()));
        assert_eq!(folder(None, None), None);
        let mut environment = environment(None, Some("/home/a"));
        assert_eq!(environment.cache_dir(), Some("/home/a/.cache/polydelta".into()));
        for (cache_home, folder) in [("/cache", "/cache/polydelta"), ("cache", "/home/a/.cache/polydelta")] {
            environment.cache_home = Some(cache_home.into());
            assert_eq!(environment.cache_dir(), Some(folder.into()));
        }
    }

    #[test]
    fn the_hubs_cache_is_where_its_own_tools_have_it() {
        let home = |path: &str| Some(PathBuf::from(path));
        let mut environment = Environment { home: home("/home/a"), ..Environment::default() };
        assert_eq!(environment.hub_cache(), home("/home/a/.cache/huggingface/hub"));
        environment.cache_home = home("/cache");
        assert_eq!(environment.hub_cache(), home("/cache/huggingface/hub"));
        environment.hub.home = home("/hf");
        assert_eq!((environment.hub_home(), environment.hub_cache()), (home("/hf"), home("/hf/hub")));
        environment.hub.cache = home("/big");
        assert_eq!((environment.hub_home(), environment.hub_cache()), (home("/hf"), home("/big")));
        assert_eq!(Environment::default().hub_cache(), None);
    }

    #[test]
    fn a_token_is_not_shown() {
        let hub = HubEnvironment { token: Some("hf_secret".into()), ..HubEnvironment::default() };
        let environment = Environment { hub, ..Environment::default() };
        assert!(!format!("{environment:?}").contains("hf_secret"));
        assert!(is_true("1") && is_true("True") && !is_true("0"));
    }
}
