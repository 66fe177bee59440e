//! What a file of AdapterHub's library has for one place of a layer, taken out by the names of the library's modules.

use super::compilation::Compilation;
use crate::delta::DeltaError;
use crate::delta::adapterhub::keys;
use crate::delta::class::LayerNorm;
use crate::ops::HostTensor;

/// The parameters of an adapter in a layer.
pub(super) struct LayerParameters<'a, 'b> {
    pub(super) compilation: &'a mut Compilation<'b>,
    layer: usize,
    place: &'static str,
}

/// A linear map with its bias.
pub(super) struct Projection {
    /// `[out, in]`.
    pub(super) matrix: HostTensor,
    /// `[out]`.
    pub(super) bias: Vec<f32>,
}

impl<'a, 'b> LayerParameters<'a, 'b> {
    /// Of a layer, at one of [`keys::PLACES`].
    pub(super) fn new(compilation: &'a mut Compilation<'b>, layer: usize, place: &'static str) -> Self {
        Self { compilation, layer, place }
    }

    /// Take a parameter that must be there.
    pub(super) fn required(&mut self, parameter: &'static str, shape: &[usize]) -> Result<HostTensor, DeltaError> {
        let key = self.key(parameter);
        self.compilation.tensors.take_shaped(&key, shape)?.ok_or_else(|| self.missing(parameter))
    }

    /// Take the weight `[out, in]` and the bias of a linear module.
    pub(super) fn projection(
        &mut self,
        [weight, bias]: [&'static str; 2],
        shape: [usize; 2],
    ) -> Result<Projection, DeltaError> {
        Ok(Projection { matrix: self.required(weight, &shape)?, bias: self.required(bias, &shape[..1])?.to_f32() })
    }

    /// Take a parameter that two modules share, so that the file may have it twice.
    pub(super) fn either(
        &mut self,
        parameter: &'static str,
        twin: &'static str,
        shape: &[usize],
    ) -> Result<HostTensor, DeltaError> {
        let keys = [parameter, twin].map(|parameter| self.key(parameter));
        let own = keys.each_ref().map(|key| self.compilation.tensors.own_key(key).unwrap_or(key).to_owned());
        let [one, other] = keys.map(|key| self.compilation.tensors.take_shaped(&key, shape));
        match (one?, other?) {
            (Some(one), Some(other)) if one != other => {
                let [first, second] = own;
                Err(DeltaError::SameTensor { first, second })
            }
            (Some(one), _) | (None, Some(one)) => Ok(one),
            (None, None) => Err(self.missing(parameter)),
        }
    }

    pub(super) fn norm_before(&mut self, hidden: usize) -> Result<LayerNorm, DeltaError> {
        let weight = self.either("adapter_down.0.weight", "adapter_norm_before.weight", &[hidden])?.to_f32();
        let bias = self.either("adapter_down.0.bias", "adapter_norm_before.bias", &[hidden])?.to_f32();
        Ok(LayerNorm { weight, bias })
    }

    pub(super) fn norm_after(&mut self, hidden: usize) -> Result<LayerNorm, DeltaError> {
        let weight = self.required("adapter_norm_after.weight", &[hidden])?.to_f32();
        let bias = self.required("adapter_norm_after.bias", &[hidden])?.to_f32();
        Ok(LayerNorm { weight, bias })
    }

    pub(super) fn key(&self, parameter: &str) -> String {
        keys::of_layer(self.layer, self.place, parameter)
    }

    fn missing(&self, missing: &'static str) -> DeltaError {
        let found = self.compilation.tensors.examples(&self.key(""));
        DeltaError::MissingTensor { module: format!("layers.{}.{}", self.layer, self.place), missing, found }
    }
}
