//! [`Passage`]: what the stream passes through on its way to a target, where norms stand in the stream itself.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::row_form::RowForm;
use super::window::View;
use crate::component::{Component, Reach};
use crate::Result;

/// The place of a sublayer in the order in which sublayers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Written(usize);

impl Written {
    /// Before the first layer: embeddings.
    pub(crate) const FIRST: Written = Written(0);

    /// By the attention of a layer.
    pub(crate) fn by_attn(layer: usize) -> Self {
        Written(2 * layer)
    }

    /// By the MLP of a layer.
    pub(crate) fn by_mlp(layer: usize) -> Self {
        Written(2 * layer + 1)
    }
}

/// The norms of the stream before a target, at the scales that they had in the run, each with what wrote last before it. There are none
/// in most models.
///
/// At its scale a norm is linear, so it passes on each part of the stream by itself; its bias is a part that begins there.
pub(crate) struct Passage {
    norms: Vec<(Written, FrozenNorm)>,
}

impl Passage {
    /// The norms of the stream before a target.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) and [`Error::NoPosition`](crate::Error::NoPosition) where the run did not keep a scale.
    pub(crate) fn of(view: &View, reach: &Reach) -> Result<Self> {
        let mut norms = Vec::new();
        for layer in 0..reach.attn_layers.max(reach.mlp_layers) {
            let sublayers = [
                (layer < reach.attn_layers, false, Written::by_attn(layer)),
                (layer < reach.mlp_layers, true, Written::by_mlp(layer)),
            ];
            for (_, after_mlp, written) in sublayers.into_iter().filter(|(is_before, ..)| *is_before) {
                if let Some(norm) = view.model().norm_of_stream(layer, after_mlp)? {
                    norms.push((written, FrozenNorm::of_run(Some(norm), view)?));
                }
            }
        }
        Ok(Passage { norms })
    }

    /// Whether a norm adds something of its own to the stream.
    pub(crate) fn adds(&self) -> bool {
        self.norms.iter().any(|(_, norm)| norm.b.is_some())
    }

    /// What was written so, as it arrives: `[row, batch, pos, d_model]`.
    pub(crate) fn carry(&self, written: Written, rows: Tensor) -> Result<Tensor> {
        self.after(written).try_fold(rows, |rows, norm| norm.apply(&rows))
    }

    /// [`Passage::carry`] of the rows of sublayers and embeddings.
    pub(crate) fn carry_each(&self, components: &[Component], rows: Tensor) -> Result<Tensor> {
        if self.norms.is_empty() {
            return Ok(rows);
        }
        let carried = components.iter().enumerate().map(|(i, component)| {
            let written = match component {
                Component::AttnOut(layer) => Written::by_attn(*layer),
                Component::MlpOut(layer) => Written::by_mlp(*layer),
                _ => Written::FIRST,
            };
            self.carry(written, rows.f_narrow(0, i as i64, 1)?)
        });
        Ok(Tensor::f_cat(&carried.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Rows that are written so, in a form: formed and carried, or projected onto what carries them.
    pub(crate) fn rows(
        &self,
        written: Written,
        form: &RowForm,
        make: impl FnOnce(&RowForm) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.after(written).next().is_none() {
            return make(form);
        }
        match form {
            RowForm::Whole => self.carry(written, make(form)?),
            RowForm::Projected(onto) => {
                let norms: Vec<&FrozenNorm> = self.after(written).collect();
                let onto = norms.into_iter().rev().try_fold(onto.handle(), |onto, norm| onto.before(norm))?;
                make(&RowForm::Projected(&onto))
            }
        }
    }

    /// What arrives of parts that begin on the way (`begins`, of a layer's attention or its MLP) and of what the norms of the stream add:
    /// `[batch, pos, d_model]`.
    pub(crate) fn accumulate(
        &self,
        reach: &Reach,
        nothing: Tensor,
        begins: impl Fn(usize, bool) -> Result<Option<Tensor>>,
    ) -> Result<Tensor> {
        let mut total = nothing;
        for layer in 0..reach.attn_layers.max(reach.mlp_layers) {
            for (is_before, after_mlp) in [(layer < reach.attn_layers, false), (layer < reach.mlp_layers, true)] {
                if !is_before {
                    continue;
                }
                let written = if after_mlp { Written::by_mlp(layer) } else { Written::by_attn(layer) };
                if let Some(part) = begins(layer, after_mlp)? {
                    total = total.f_add(&part)?;
                }
                if let Some((_, norm)) = self.norms.iter().find(|(after, _)| *after == written) {
                    total = norm.apply(&total)?;
                    if let Some(bias) = &norm.b {
                        total = total.f_add(&bias.f_to_kind(total.f_kind()?)?)?;
                    }
                }
            }
        }
        Ok(total)
    }

    fn after(&self, written: Written) -> impl Iterator<Item = &FrozenNorm> {
        self.norms.iter().filter(move |(after, _)| *after >= written).map(|(_, norm)| norm)
    }
}
