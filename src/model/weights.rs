//! A checkpoint's tensors in a backend's memory, stacked as the decoder runs them.

use super::checkpoint::Checkpoint;
use super::experts::ExpertTensors;
use super::fit::weight_shape;
use super::rope::rope_table;
use super::spec::{DecoderSpec, DenseMlp, Mlp};
use super::{ModelError, base_layout};
use crate::delta::apply::LinearWeights;
use crate::delta::{BaseLayout, LayerSite, Site};
use crate::ops::{Activation, Backend, Expert, ExpertsSpec, HostMatrix, HostTensor};

/// One layer.
pub(super) struct LayerWeights<B: Backend> {
    pub(super) attention_norm: B::Vector,
    pub(super) qkv: LinearWeights<B>,
    pub(super) q_norm: Option<B::Vector>,
    pub(super) k_norm: Option<B::Vector>,
    pub(super) o: LinearWeights<B>,
    pub(super) attention_out_norm: Option<B::Vector>,
    pub(super) mlp_norm: B::Vector,
    pub(super) mlp: MlpWeights<B>,
    pub(super) mlp_out_norm: Option<B::Vector>,
}

/// Those of an [`Mlp`].
pub(super) enum MlpWeights<B: Backend> {
    /// Of [`Mlp::Dense`].
    Dense {
        activation: Activation,
        /// Stacked.
        gate_up: LinearWeights<B>,
        down: LinearWeights<B>,
    },
    /// Of [`Mlp::Experts`].
    Experts {
        spec: ExpertsSpec,
        /// `[experts, hidden]`.
        router: B::Weight,
        experts: B::Experts,
    },
}

/// The frozen base on a device.
pub struct BaseModel<B: Backend> {
    pub(super) layers: Vec<LayerWeights<B>>,
    pub(super) embed: B::Weight,
    /// Absent where the head is the embedding.
    pub(super) lm_head: Option<B::Weight>,
    pub(super) final_norm: B::Vector,
    pub(super) ropes: Vec<B::Rope>,
}

/// Told about each layer as it is loaded: (done, of).
pub type Progress<'a> = &'a dyn Fn(usize, usize);

impl<B: Backend> BaseModel<B> {
    /// Load and pack all weights for contexts of `max_model_len` tokens.
    ///
    /// # Errors
    /// Missing or misshapen tensors, and memory the device refuses.
    pub fn load(
        backend: &B,
        spec: &DecoderSpec,
        checkpoint: &Checkpoint,
        max_model_len: usize,
        progress: Progress<'_>,
    ) -> Result<Self, ModelError> {
        let loader = Loader { backend, spec, checkpoint, layout: base_layout(spec) };
        let count = spec.layers.len();
        let mut layers = Vec::with_capacity(count);
        for layer in 0..count {
            layers.push(loader.layer(layer as u32)?);
            progress(layer + 1, count);
        }
        let lm_head = if spec.tied { None } else { Some(loader.stack(&[Site::LmHead])?.weight) };
        let table = |rope| backend.rope(&rope_table(rope, max_model_len, spec.long_rope()));
        let model = Self {
            layers,
            embed: loader.stack(&[Site::Embed])?.weight,
            lm_head,
            final_norm: loader.norm(Site::FinalNorm)?,
            ropes: spec.ropes.iter().map(table).collect::<Result<_, _>>()?,
        };
        loader.warn_of_unused();
        Ok(model)
    }
}

struct Loader<'a, B> {
    backend: &'a B,
    spec: &'a DecoderSpec,
    checkpoint: &'a Checkpoint,
    layout: BaseLayout,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, layer: u32) -> Result<LayerWeights<B>, ModelError> {
        use LayerSite::{AttentionNorm, AttentionOutNorm, K, KNorm, MlpNorm, MlpOutNorm, O, Q, QNorm, Qkv, V};
        let site = |part| Site::Layer(layer, part);
        let (q, kv, fused) = (self.spec.q_dim(), self.spec.kv_dim(), self.spec.fused_projections);
        let qkv = if fused { self.split(site(Qkv), &[q, kv, kv])? } else { self.stack(&[site(Q), site(K), site(V)])? };
        Ok(LayerWeights {
            attention_norm: self.norm(site(AttentionNorm))?,
            qkv,
            q_norm: self.norm_if(self.spec.qk_norm, site(QNorm))?,
            k_norm: self.norm_if(self.spec.qk_norm, site(KNorm))?,
            o: self.stack(&[site(O)])?,
            attention_out_norm: self.norm_if(self.spec.sandwich_norms, site(AttentionOutNorm))?,
            mlp_norm: self.norm(site(MlpNorm))?,
            mlp: self.mlp(layer)?,
            mlp_out_norm: self.norm_if(self.spec.sandwich_norms, site(MlpOutNorm))?,
        })
    }

    fn mlp(&self, layer: u32) -> Result<MlpWeights<B>, ModelError> {
        use LayerSite::{Down, Gate, GateUp, Up};
        let site = |part| Site::Layer(layer, part);
        match self.spec.layers[layer as usize].mlp {
            Mlp::Dense(DenseMlp { intermediate_size: inner, activation, .. }) => Ok(MlpWeights::Dense {
                activation,
                gate_up: if self.spec.fused_projections {
                    self.split(site(GateUp), &[inner, inner])?
                } else {
                    self.stack(&[site(Gate), site(Up)])?
                },
                down: self.stack(&[site(Down)])?,
            }),
            Mlp::Experts(spec) => self.experts(layer, spec),
        }
    }

    /// One expert after the other is read, packed and let go of.
    fn experts(&self, layer: u32, spec: ExpertsSpec) -> Result<MlpWeights<B>, ModelError> {
        let tensors = ExpertTensors::of(self.spec, layer, spec, self.checkpoint);
        let (router, shape) = tensors.router();
        let router = self.checkpoint.tensor(&router, &shape)?;
        let mut experts = Vec::with_capacity(spec.experts);
        for expert in 0..spec.experts {
            let read = tensors.read(self.checkpoint, expert)?;
            let gate_up = self.backend.weight(&read.gate_up())?;
            experts.push(Expert { gate_up, down: self.backend.weight(&[read.down.matrix()])? });
        }
        let router = self.backend.weight(&[router.matrix()])?;
        Ok(MlpWeights::Experts { spec, router, experts: self.backend.expert_table(experts)? })
    }

    fn module(&self, site: Site) -> Result<&crate::delta::Module, ModelError> {
        let found = self.layout.modules().find(|module| module.site == site);
        found.ok_or_else(|| ModelError::MissingTensor { name: site.to_string() })
    }

    /// Weight and bias of one module, as stored.
    fn read(&self, site: Site) -> Result<(HostTensor, Option<Vec<f32>>), ModelError> {
        let module = self.module(site)?;
        let weight = self.checkpoint.tensor(&module.weight, &weight_shape(module))?;
        let bias = |name: String| self.checkpoint.tensor(&name, &[module.output]).map(|bias| bias.to_f32());
        let bias = module.bias.then(|| bias(format!("{}.bias", module.path))).transpose()?;
        Ok((weight, bias))
    }

    /// Several modules of one input, stacked along their outputs.
    fn stack(&self, sites: &[Site]) -> Result<LinearWeights<B>, ModelError> {
        let parts = sites.iter().map(|site| self.read(*site)).collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<HostMatrix<'_>> = parts.iter().map(|(weight, _)| weight.matrix()).collect();
        let bias: Vec<f32> = parts.iter().filter_map(|(_, bias)| bias.as_ref()).flatten().copied().collect();
        self.pack(&segments, &bias)
    }

    /// One module that the checkpoint stores already stacked.
    fn split(&self, site: Site, widths: &[usize]) -> Result<LinearWeights<B>, ModelError> {
        let (weight, bias) = self.read(site)?;
        let mut first = 0;
        let mut segments = Vec::with_capacity(widths.len());
        for width in widths {
            segments.push(weight.rows_of(first..first + width));
            first += width;
        }
        self.pack(&segments, &bias.unwrap_or_default())
    }

    fn pack(&self, segments: &[HostMatrix<'_>], bias: &[f32]) -> Result<LinearWeights<B>, ModelError> {
        let bias = if bias.is_empty() { None } else { Some(self.backend.vector(bias)?) };
        Ok(LinearWeights { weight: self.backend.weight(segments)?, bias })
    }

    fn norm(&self, site: Site) -> Result<B::Vector, ModelError> {
        let stored = self.read(site)?.0.to_f32();
        let gain: Vec<f32> = stored.into_iter().map(|w| w + self.spec.norm_offset).collect();
        Ok(self.backend.vector(&gain)?)
    }

    fn norm_if(&self, wanted: bool, site: Site) -> Result<Option<B::Vector>, ModelError> {
        wanted.then(|| self.norm(site)).transpose()
    }

    /// Tensors the config gives no place: transformers ignores them too, but an operator wants to know.
    fn warn_of_unused(&self) {
        for name in self.checkpoint.unused(self.spec, &self.layout) {
            tracing::warn!(
                tensor = name,
                "the checkpoint has a tensor that config.json gives no place; it is not used"
            );
        }
    }
}
