//! Compacter's matrices (Mahabadi et al. 2021): sums of Kronecker products, of which a small part is a rule and the other may
//! be factored again; either may be one for all layers. `[in, out]` in the file, `[out, in]` here.

use super::compilation::Compilation;
use super::folds::matrix;
use super::layer_parameters::{LayerParameters, Projection};
use crate::delta::DeltaError;
use crate::delta::adapterhub::keys;
use crate::delta::peft::fields::Fields;

/// The config's part.
pub(super) struct Phm {
    dim: usize,
    rank: usize,
    has_bias: bool,
    shared_rule: bool,
    factored_rule: bool,
    shared_weights: bool,
    factored_weights: bool,
}

/// What [`Phm::read`] reads.
const FIELDS: [&str; 7] = [
    "config.phm_dim",
    "config.phm_rank",
    "config.phm_bias",
    "config.shared_phm_rule",
    "config.factorized_phm_rule",
    "config.shared_W_phm",
    "config.factorized_phm_W",
];

/// A stack of `dim` matrices `[rows, cols]`.
struct Stack {
    rows: usize,
    cols: usize,
    numbers: Vec<f32>,
}

impl Stack {
    fn at(&self, index: usize, row: usize, col: usize) -> f64 {
        f64::from(self.numbers[(index * self.rows + row) * self.cols + col])
    }

    /// Each with its counterpart of another stack.
    fn times(&self, other: &Self, dim: usize) -> Self {
        let cell = |at: usize| {
            let (index, row, col) = (at / (self.rows * other.cols), at / other.cols % self.rows, at % other.cols);
            (0..self.cols).map(|k| self.at(index, row, k) * other.at(index, k, col)).sum::<f64>() as f32
        };
        let numbers = (0..dim * self.rows * other.cols).map(cell).collect();
        Self { rows: self.rows, cols: other.cols, numbers }
    }
}

impl Phm {
    pub(super) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        let [dim, rank, has_bias, shared_rule, factored_rule, shared_weights, factored_weights] = FIELDS;
        let size = |field, default| match fields.usize(field)?.unwrap_or(default) {
            0 => Err(fields.bad(field, "at least 1")),
            size => Ok(size),
        };
        let read = Self {
            dim: size(dim, 4)?,
            rank: size(rank, 1)?,
            has_bias: fields.bool_or(has_bias, true)?,
            shared_rule: fields.bool_or(shared_rule, true)?,
            factored_rule: fields.bool_or(factored_rule, false)?,
            shared_weights: fields.bool_or(shared_weights, false)?,
            factored_weights: fields.bool_or(factored_weights, true)?,
        };
        if read.shared_weights && !read.factored_weights {
            return Err(fields.unsupported(shared_weights, " without factorized_phm_W: the library cannot make it"));
        }
        Ok(read)
    }

    /// Of a config without it, in which they mean nothing.
    pub(super) fn ignore(fields: &Fields) -> Option<Self> {
        fields.ignore(&FIELDS);
        None
    }

    /// Take a matrix `[out, in]` and its bias; `module` is where it is, `position` what the shared ones call it.
    pub(super) fn take(
        &self,
        own: &mut LayerParameters<'_, '_>,
        module: &'static str,
        position: &str,
        [output, input]: [usize; 2],
    ) -> Result<Projection, DeltaError> {
        if !output.is_multiple_of(self.dim) || !input.is_multiple_of(self.dim) {
            let found = format!("{}, for a matrix of {output} by {input}", self.dim);
            let field = "config.phm_dim".to_owned();
            return Err(DeltaError::BadField { field, found, expected: "a divisor of both" });
        }
        let (rows, cols) = (input / self.dim, output / self.dim);
        let weights = self.weights(own, module, position, [rows, cols])?;
        let rule = self.rule(own, module)?;
        let bias = match self.has_bias {
            true => {
                let key = own.key(&format!("{module}.b"));
                own.compilation.tensors.take_shaped(&key, &[output])?.ok_or_else(|| missing(own, &key))?.to_f32()
            }
            false => vec![0.0; output],
        };
        let cell = |row: usize, col: usize| {
            let term = |index| rule.at(index, col / rows, row / cols) * weights.at(index, col % rows, row % cols);
            (0..self.dim).map(term).sum::<f64>() as f32
        };
        Ok(Projection { matrix: matrix(own.compilation, output, input, cell)?, bias })
    }

    /// The large factors, `[rows, cols]` each.
    fn weights(
        &self,
        own: &mut LayerParameters<'_, '_>,
        module: &str,
        position: &str,
        [rows, cols]: [usize; 2],
    ) -> Result<Stack, DeltaError> {
        let [left, right] = ["left", "right"].map(|side| match self.shared_weights {
            true => keys::shared(&format!("W_{position}_{side}")),
            false => own.key(&format!("{module}.W_{side}")),
        });
        match self.factored_weights {
            true => {
                let left = self.stack(own, &left, rows, self.rank, self.shared_weights)?;
                self.product(own, left, &right, self.rank, cols, self.shared_weights)
            }
            false => {
                let key = own.key(&format!("{module}.W"));
                self.stack(own, &key, rows, cols, false)
            }
        }
    }

    /// The small factors, `[dim, dim]` each.
    fn rule(&self, own: &mut LayerParameters<'_, '_>, module: &str) -> Result<Stack, DeltaError> {
        let [whole, left, right] = ["phm_rule", "phm_rule_left", "phm_rule_right"].map(|part| match self.shared_rule {
            true => keys::shared(part),
            false => own.key(&format!("{module}.{part}")),
        });
        match self.factored_rule {
            true => {
                let left = self.stack(own, &left, self.dim, 1, self.shared_rule)?;
                self.product(own, left, &right, 1, self.dim, self.shared_rule)
            }
            false => self.stack(own, &whole, self.dim, self.dim, self.shared_rule),
        }
    }

    fn stack(
        &self,
        own: &mut LayerParameters<'_, '_>,
        key: &str,
        rows: usize,
        cols: usize,
        is_shared: bool,
    ) -> Result<Stack, DeltaError> {
        let (tensors, shape) = (&mut own.compilation.tensors, [self.dim, rows, cols]);
        // The next one wants it too.
        let taken = if is_shared { tensors.peek_shaped(key, &shape)? } else { tensors.take_shaped(key, &shape)? };
        let numbers = taken.ok_or_else(|| missing(own, key))?.to_f32();
        Ok(Stack { rows, cols, numbers })
    }

    /// A stack times the one at a key.
    fn product(
        &self,
        own: &mut LayerParameters<'_, '_>,
        left: Stack,
        right: &str,
        rows: usize,
        cols: usize,
        is_shared: bool,
    ) -> Result<Stack, DeltaError> {
        let right = self.stack(own, right, rows, cols, is_shared)?;
        match own.compilation.tensors.has_no_numbers() {
            true => Ok(left),
            false => Ok(left.times(&right, self.dim)),
        }
    }

    /// Everybody has read what is shared.
    pub(super) fn take_shared(&self, compilation: &mut Compilation<'_>) {
        let rule: &[&str] = match (self.shared_rule, self.factored_rule) {
            (true, true) => &["phm_rule_left", "phm_rule_right"],
            (true, false) => &["phm_rule"],
            (false, _) => &[],
        };
        let weights: &[&str] = match self.shared_weights {
            true => &["W_down_left", "W_down_right", "W_up_left", "W_up_right"],
            false => &[],
        };
        for part in rule.iter().chain(weights) {
            compilation.tensors.remove(&keys::shared(part));
        }
    }
}

fn missing(own: &LayerParameters<'_, '_>, key: &str) -> DeltaError {
    let found = own.compilation.tensors.examples(&own.key(""));
    DeltaError::MissingTensor { module: key.to_owned(), missing: "numbers", found }
}
