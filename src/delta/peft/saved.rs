//! `modules_to_save`: which modules a file has whole, by the rules of PEFT's `_set_trainable`, and which a method therefore
//! leaves alone, by those of its `check_target_module_exists`.

use super::fields::{Fields, Names};
use crate::delta::DeltaError;

/// The names of a config.
#[derive(Default)]
pub(crate) struct SavedNames(Vec<String>);

impl SavedNames {
    pub(crate) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        const FIELD: &str = "modules_to_save";
        // A method's targets take names as expressions, and saved modules as they are: for these the two are the same.
        let is_name = |name: &String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            !name.is_empty() && name.bytes().all(plain)
        };
        match fields.names(FIELD)? {
            None => Ok(Self(Vec::new())),
            Some(Names::List(names)) if names.iter().all(is_name) => Ok(Self(names)),
            Some(_) => Err(fields.bad(FIELD, "a list of module names")),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each by itself.
    pub(crate) fn each(&self) -> impl Iterator<Item = Self> {
        self.0.iter().map(|name| Self(vec![name.clone()]))
    }

    /// Whether the file has the module at a path whole: its path, or that of a module it is a part of, ends in the letters
    /// of a name, whatever stands before them.
    pub(crate) fn contain(&self, path: &str) -> bool {
        let mut ends = path.match_indices('.').map(|(at, _)| at).chain([path.len()]);
        ends.any(|end| self.0.iter().any(|name| path[..end].ends_with(name.as_str())))
    }

    /// Whether a method leaves the module at a path alone: it has a name as whole parts of its path.
    pub(crate) fn hide(&self, path: &str) -> bool {
        let path = format!(".{path}.");
        self.0.iter().any(|name| path.contains(&format!(".{name}.")))
    }
}

#[cfg(test)]
mod tests {
    use super::SavedNames;

    fn names(names: &[&str]) -> SavedNames {
        SavedNames(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_module_is_saved_by_the_end_of_its_path_or_of_what_holds_it() {
        let layer = "model.layers.1.mlp.down_proj";
        for name in ["down_proj", "proj", "mlp.down_proj", "mlp", "layers.1", "1", "ayers", layer] {
            assert!(names(&[name]).contain(layer), "{name}");
        }
        for name in ["up_proj", "layers.11", "layer", "self_attn", "down"] {
            assert!(!names(&[name]).contain(layer), "{name}");
        }
        assert!(names(&["norm"]).contain("model.layers.0.input_layernorm"), "in its letters");
        assert!(names(&["1"]).contain("model.layers.21.mlp.down_proj"));
        assert!(!names(&[]).contain(layer) && names(&["x", "mlp"]).contain(layer));
    }

    #[test]
    fn a_method_leaves_what_has_a_name_as_whole_parts() {
        let layer = "model.layers.1.mlp.down_proj";
        for name in ["down_proj", "mlp", "layers.1", "model", layer] {
            assert!(names(&[name]).hide(layer), "{name}");
        }
        for name in ["proj", "layers.11", "own_proj", "mlp.down"] {
            assert!(!names(&[name]).hide(layer), "{name}");
        }
    }
}
