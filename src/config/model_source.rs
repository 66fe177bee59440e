//! Where the base model comes from, as `--model` names it.

use std::path::{Path, PathBuf};

use super::checks::Checks;
use super::problem::ConfigProblem;
use super::source::HubRepository;

const FLAG: &str = "--model";

/// Where the base model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder as Hugging Face lays it out, or with one GGUF file.
    Dir(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A repository of the hub.
    Hub(HubRepository),
    /// The model in the binary.
    Bundled,
}

/// Read `--model`: a folder or a GGUF file, which must exist, or `hf:ORG/NAME`.
pub(super) fn model_source(checks: &mut Checks, model: &str) -> ModelSource {
    const EXPECTED: &str = "a folder, a GGUF file or hf:ORG/NAME[@REVISION]";
    let invalid = || ConfigProblem::Invalid { flag: FLAG, value: model.to_owned(), expected: EXPECTED };
    let hint = |hint: String| ConfigProblem::Model { flag: FLAG, value: model.to_owned(), hint };
    match model.strip_prefix("hf:").map(str::parse::<HubRepository>) {
        Some(Ok(repository)) => return ModelSource::Hub(repository),
        Some(Err(_)) => {
            checks.report(invalid());
            return ModelSource::Bundled;
        }
        None => {}
    }
    let path = PathBuf::from(model);
    if model.is_empty() {
        checks.report(invalid());
    } else if let Some(repository) = page_of_the_hub(model) {
        checks.report(hint(format!("a model of the hub is named hf:{repository}")));
    } else if is_gguf(&path) && !path.is_dir() {
        if !path.exists() {
            checks.report(ConfigProblem::NoFile { flag: FLAG, path: path.clone() });
        }
        return ModelSource::Gguf(path);
    } else if path.is_file() {
        let hint = "this is a file; give a GGUF file, or the folder that has the model's config.json".to_owned();
        checks.report(ConfigProblem::NotServed { flag: FLAG, value: model.to_owned(), hint });
    } else if !path.is_dir() {
        let hint = if is_repository(model) { format!("; hf:{model} fetches it from the hub") } else { String::new() };
        checks.report(ConfigProblem::NoFolder { flag: FLAG, path: path.clone(), hint });
    }
    ModelSource::Dir(path)
}

/// As the hub allows it.
fn is_repository(text: &str) -> bool {
    text.parse::<HubRepository>().is_ok()
}

/// The repository of a link that was copied from a browser.
fn page_of_the_hub(text: &str) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let rest = rest.strip_prefix("huggingface.co/").or_else(|| rest.strip_prefix("hf.co/"))?;
    let repository: Vec<_> = rest.split('/').take(2).collect();
    Some(repository.join("/")).filter(|repository| is_repository(repository))
}

/// By its name: a file of another name is hardly meant to be one.
fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Exit;

    fn problem(model: &str) -> String {
        let mut checks = Checks::default();
        model_source(&mut checks, model);
        checks.done(()).unwrap_err().to_string()
    }

    #[test]
    fn a_gguf_file_is_told_by_its_name() {
        let file = tempfile::Builder::new().suffix(".Q8_0.GGUF").tempfile().unwrap();
        let mut checks = Checks::default();
        let source = model_source(&mut checks, file.path().to_str().unwrap());
        assert_eq!(checks.done(source).unwrap(), ModelSource::Gguf(file.path().to_owned()));
    }

    #[test]
    fn what_people_write_for_a_model_is_told_the_right_way() {
        assert!(problem("./model.gguf").ends_with("there is no file ./model.gguf"), "{}", problem("./model.gguf"));
        assert!(problem("Qwen/Qwen2.5-0.5B").contains("hf:Qwen/Qwen2.5-0.5B"));
        assert!(problem("https://huggingface.co/Qwen/Qwen3-8B/tree/main").contains("hf:Qwen/Qwen3-8B"));
        assert!(problem(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).contains("this is a file"));
        let exit = |model: &str| {
            let mut checks = Checks::default();
            model_source(&mut checks, model);
            checks.done(()).unwrap_err().exit()
        };
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        assert_eq!(exit(file.path().to_str().unwrap()), Exit::Rejected, "as an adapter that is there and not served");
        assert_eq!(exit("/does/not/model.gguf"), Exit::NotFound);
        assert_eq!(exit("/does/not/exist"), Exit::NotFound);
        assert_eq!(exit("https://huggingface.co/Qwen/Qwen3-8B"), Exit::Usage);
        let plain = problem("/does/not/exist");
        assert!(plain.ends_with("there is no folder /does/not/exist"), "{plain}");
    }
}
