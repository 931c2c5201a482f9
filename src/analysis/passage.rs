//! [`Passage`]: what the stream passes through on its way to a target, where norms stand in the stream itself.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::row_form::RowForm;
use super::window::View;
use crate::component::{Component, Reach, Sublayer};
use crate::Result;

/// The place of a sublayer in the order in which sublayers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Written(usize);

impl Written {
    /// Before the first layer: embeddings.
    pub(crate) const FIRST: Written = Written(0);

    /// By a component.
    pub(crate) fn of(component: &Component) -> Self {
        match component {
            Component::AttnOut(layer) => Written::by(*layer, Sublayer::Attention),
            Component::CrossAttnOut(layer) => Written::by(*layer, Sublayer::CrossAttention),
            Component::MlpOut(layer) => Written::by(*layer, Sublayer::Mlp),
            _ => Written::FIRST,
        }
    }

    /// Before the sublayer of this number.
    pub(crate) fn before(number: usize) -> Self {
        Written(number.saturating_sub(1))
    }

    /// By a sublayer.
    pub(crate) fn by(layer: usize, sublayer: Sublayer) -> Self {
        Written(3 * layer + sublayer as usize + 1)
    }
}

/// The norms of the stream before a target, at the scales that they had in the run, each with what wrote last before it: that of all
/// embeddings, with their map to the stream, and those after sublayers. There are none in most models.
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
        let (norm, map) = view.model().behind_embeddings()?;
        if norm.is_some() || map.is_some() {
            let norm = FrozenNorm::of_run(norm, view)?;
            norms.push((Written::FIRST, map.map_or(Ok(norm.handle()), |map| norm.then(map))?));
        }
        for (layer, sublayer) in reach.sublayers(view.model().config()) {
            if let Some(norm) = view.model().norm_of_stream(layer, sublayer)?
                && reach.is_behind_norm(layer, sublayer)
            {
                norms.push((Written::by(layer, sublayer), FrozenNorm::of_run(Some(norm), view)?));
            }
        }
        Ok(Passage { norms })
    }

    /// Whether a norm adds something of its own to the stream.
    pub(crate) fn adds(&self) -> bool {
        self.norms.iter().any(|(_, norm)| norm.b.is_some())
    }

    /// What was written so, as it arrives: `[…, batch, pos, d_model]`.
    pub(crate) fn carry(&self, written: Written, rows: Tensor) -> Result<Tensor> {
        self.after(written).try_fold(rows, |rows, norm| norm.apply(&rows))
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

    /// What arrives of parts that begin on the way (`begins`, of each sublayer before the target) and of what the norms of the stream
    /// add: `[batch, pos, d_model]`. `nothing` is zeros of the embeddings' shape.
    pub(crate) fn accumulate(
        &self,
        sublayers: impl Iterator<Item = (usize, Sublayer)>,
        nothing: Tensor,
        begins: impl Fn(usize, Sublayer) -> Result<Option<Tensor>>,
    ) -> Result<Tensor> {
        let mut total = self.through(Written::FIRST, nothing)?;
        for (layer, sublayer) in sublayers {
            if let Some(part) = begins(layer, sublayer)? {
                total = total.f_add(&part)?;
            }
            total = self.through(Written::by(layer, sublayer), total)?;
        }
        Ok(total)
    }

    /// The stream through the norm right behind what was written last, its bias included.
    fn through(&self, written: Written, stream: Tensor) -> Result<Tensor> {
        let Some((_, norm)) = self.norms.iter().find(|(after, _)| *after == written) else { return Ok(stream) };
        let stream = norm.apply(&stream)?;
        match &norm.b {
            Some(bias) => Ok(stream.f_add(&bias.f_to_kind(stream.f_kind()?)?)?),
            None => Ok(stream),
        }
    }

    fn after(&self, written: Written) -> impl Iterator<Item = &FrozenNorm> {
        self.norms.iter().filter(move |(after, _)| *after >= written).map(|(_, norm)| norm)
    }
}
