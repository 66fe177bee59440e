//! From a program to memory on the device, on a loader thread.

use super::class::{DeltaOp, Loading};
use super::layout::{BaseLayout, Site};
use super::program::DeltaProgram;
use super::resident::PreparedDelta;
use super::sites::DeltaSites;
use crate::ops::{Backend, HostMatrix, OpsError};

impl<B: Backend> PreparedDelta<B> {
    /// Move a program's numbers to the device.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`]; nothing stays allocated then.
    pub fn new(backend: &B, layout: &BaseLayout, program: DeltaProgram) -> Result<Self, OpsError> {
        let (classes, vocab_size) = (program.classes(), program.vocab_size);
        let laid_out = |(site, op): (Site, DeltaOp)| Ok((site, op.laid_out()?));
        let ops = program.ops.into_iter().map(laid_out).collect::<Result<Vec<_>, OpsError>>()?;
        let matrices: Vec<HostMatrix<'_>> = ops.iter().flat_map(|(_, op)| op.as_op().matrices()).collect();
        let sites = DeltaSites::new(layout);
        let mut loading = Loading::new(backend, layout, &sites, backend.weight_group(&matrices)?);
        for (site, op) in ops {
            op.load(site, &mut loading)?;
        }
        loading.finish(classes, vocab_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::layout::{BaseSizes, LayerSite};
    use crate::delta::{Bias, DeltaTable, Gain, InputScale};
    use crate::ops::reference::ReferenceBackend;
    use crate::ops::{Numerics, SiteId, SiteSet};
    use crate::types::{AdapterSlot, AdapterTask};

    const WIDTH: usize = 4;

    fn layout() -> BaseLayout {
        let sizes = BaseSizes {
            layers: 2,
            hidden_size: WIDTH,
            q_dim: WIDTH,
            kv_dim: WIDTH,
            kv_heads: 1,
            intermediate_size: WIDTH,
            vocab_size: WIDTH,
            norm_offset: 0.0,
            tied: false,
            model_type: "llama",
        };
        BaseLayout::new(sizes, Vec::new())
    }

    fn program(ops: Vec<(Site, DeltaOp)>) -> DeltaProgram {
        DeltaProgram {
            kind: String::new(),
            task: AdapterTask::default(),
            ops,
            invocation_tokens: Vec::new(),
            keeps_base_kv: false,
            base_layers: 0,
            vocab_size: None,
            unknown_fields: Vec::new(),
        }
    }

    #[test]
    fn a_site_is_held_by_the_slots_that_have_entries_there_and_by_no_others() {
        let (backend, layout) = (ReferenceBackend::new(Numerics::F32), layout());
        let mut table = DeltaTable::new(&backend, &layout, 8).unwrap();
        let numbers = || vec![0.5; WIDTH];
        let biases = |layers: &[u32]| {
            let bias = |layer| (Site::Layer(layer, LayerSite::K), Bias { b: numbers() }.into());
            program(layers.iter().copied().map(bias).collect())
        };
        // A scale of q, k and v together is an entry for each of the three modules.
        let mut other = biases(&[1]);
        other.ops.push((Site::Layer(0, LayerSite::Qkv), InputScale { g: numbers() }.into()));
        other.ops.push((Site::FinalNorm, Gain { g: numbers() }.into()));
        let [first, second] = [AdapterSlot(3), AdapterSlot(0)];
        let install = |table: &mut DeltaTable<_>, slot, program| {
            table.install(&backend, slot, PreparedDelta::new(&backend, &layout, program).unwrap());
        };
        install(&mut table, first, biases(&[0, 1]));
        install(&mut table, second, other);
        let held = |table: &DeltaTable<_>, slots: &[AdapterSlot]| -> Vec<SiteId> {
            let mut held = SiteSet::new([SiteId(0)]);
            table.held(&backend, slots.iter().copied(), &mut held);
            (0..table.sites.count as u32).map(SiteId).filter(|site| held.contains(*site)).collect()
        };
        let layers = &table.sites.layers;
        let biases = [layers[0].qkv.bias, layers[1].qkv.bias];
        let scales: Vec<SiteId> = layers[0].qkv.inputs.iter().map(|input| input.scale).collect();
        assert_eq!(scales.len(), 3);
        let others = [&scales[..], &[biases[1], table.sites.final_norm]].concat();
        assert_eq!(held(&table, &[first]), biases);
        assert_eq!(held(&table, &[second]), others);
        assert_eq!(held(&table, &[first, second]).len(), biases.len() + others.len() - 1);
        assert!(held(&table, &[AdapterSlot(1), AdapterSlot(9)]).is_empty());
        assert!(table.remove(&backend, first).is_some());
        assert_eq!(held(&table, &[first, second]), others);
        assert!(table.remove(&backend, second).is_some() && table.remove(&backend, second).is_none());
        assert!(held(&table, &[first, second]).is_empty());
    }
}
