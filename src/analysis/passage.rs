//! [`Passage`]: what the stream passes through on its way to a target, where norms stand in the stream itself or factors multiply it.

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
            Component::PleOut(layer) => Written::by_ple(*layer),
            _ => Written::FIRST,
        }
    }

    /// By a sublayer.
    pub(crate) fn by(layer: usize, sublayer: Sublayer) -> Self {
        Written(4 * layer + 1 + sublayer as usize)
    }

    /// By the per-layer embedding of a layer.
    pub(crate) fn by_ple(layer: usize) -> Self {
        Written(4 * layer + 4)
    }

    /// The last that was written before a sublayer, which its number names.
    pub(crate) fn before(layer: usize, sublayer: usize) -> Self {
        Written(4 * layer + sublayer)
    }
}

/// What the stream passes through as a whole.
enum Step {
    Norm(FrozenNorm),
    /// A number, `[1]`, or one for each entry, `[d_model]`.
    Factor(Tensor),
}

impl Step {
    /// `[…, batch, pos, d_model]`, without the norm's bias.
    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        match self {
            Step::Norm(norm) => norm.apply(rows),
            Step::Factor(factor) => Ok(rows.f_mul(factor)?),
        }
    }

    fn bias(&self) -> Option<&Tensor> {
        match self {
            Step::Norm(norm) => norm.b.as_ref(),
            Step::Factor(_) => None,
        }
    }
}

/// The norms and factors of the stream before a target, the norms at the scales that they had in the run, each with what wrote last
/// before it. There are none in most models.
///
/// At its scale a norm is linear, so it passes on each part of the stream by itself; its bias is a part that begins there.
pub(crate) struct Passage {
    steps: Vec<(Written, Step)>,
}

impl Passage {
    /// The norms and factors of the stream before a target.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) and [`Error::NoPosition`](crate::Error::NoPosition) where the run did not keep a scale.
    pub(crate) fn of(view: &View, reach: &Reach) -> Result<Self> {
        let mut steps = Vec::new();
        let (norm, map) = view.model().behind_embeddings()?;
        if norm.is_some() || map.is_some() {
            let norm = FrozenNorm::of_run(norm, view)?;
            steps.push((Written::FIRST, Step::Norm(map.map_or(Ok(norm.handle()), |map| norm.then(map))?)));
        }
        for (layer, sublayer) in reach.sublayers(view.model().config()) {
            if let Some(factor) = view.model().stream_factor(layer, sublayer)? {
                steps.push((Written::before(layer, sublayer as usize), Step::Factor(factor)));
            }
            if let Some(norm) = view.model().norm_of_stream(layer, sublayer)?
                && reach.is_behind_norm(layer, sublayer)
            {
                steps.push((Written::by(layer, sublayer), Step::Norm(FrozenNorm::of_run(Some(norm), view)?)));
            }
        }
        for layer in 0..reach.whole_layers {
            if let Some(factor) = view.model().layer_factor(layer)? {
                steps.push((Written::by_ple(layer), Step::Factor(factor)));
            }
        }
        steps.sort_by_key(|(written, _)| *written); // those at one place stay in their order
        Ok(Passage { steps })
    }

    /// Whether a norm adds something of its own to the stream.
    pub(crate) fn adds(&self) -> bool {
        self.steps.iter().any(|(_, step)| step.bias().is_some())
    }

    /// What was written so, as it arrives: `[…, batch, pos, d_model]`.
    pub(crate) fn carry(&self, written: Written, rows: Tensor) -> Result<Tensor> {
        self.after(written).try_fold(rows, |rows, step| step.apply(&rows))
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
                let steps: Vec<&Step> = self.after(written).collect();
                let onto = steps.into_iter().rev().try_fold(onto.handle(), |onto, step| match step {
                    Step::Norm(norm) => onto.before(norm),
                    Step::Factor(factor) => onto.times(factor),
                })?;
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
        let mut total = nothing;
        let mut steps = self.steps.iter().peekable();
        let mut pass = |mut total: Tensor, written: Written| -> Result<Tensor> {
            while let Some((_, step)) = steps.next_if(|(after, _)| *after <= written) {
                total = step.apply(&total)?;
                if let Some(bias) = step.bias() {
                    total = total.f_add(&bias.f_to_kind(total.f_kind()?)?)?;
                }
            }
            Ok(total)
        };
        for (layer, sublayer) in sublayers {
            total = pass(total, Written::before(layer, sublayer as usize))?;
            if let Some(part) = begins(layer, sublayer)? {
                total = total.f_add(&part)?;
            }
            total = pass(total, Written::by(layer, sublayer))?;
        }
        pass(total, Written(usize::MAX))
    }

    fn after(&self, written: Written) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |(after, _)| *after >= written).map(|(_, step)| step)
    }
}
