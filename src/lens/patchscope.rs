//! [`Patchscope`]: a stream read by the model itself, within another prompt.

use tch::Tensor;

use crate::analysis::{LensOptions, LogitLens};
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::hook::{self, HookName, HookPoint};
use crate::layer::Layer;
use crate::run::{Hooks, Patch};
use crate::text::input::{Input, Tokens};
use crate::text::positions::Positions;
use crate::{Error, GenerateOptions, Generated, HookedTransformer, Result, RunOptions, StepOptions};

/// How many streams are read in one run.
const AT_ONCE: i64 = 64;

/// A Patchscope (Ghandeharioun et al. 2024, "Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language Models"): a
/// stream of any run is put in place of the stream at one position of another prompt, the target, and the model goes on from there.
///
/// A target prompt of few-shot repetitions, such as `cat -> cat; dog -> dog; x`, patched at `x`, makes the model say which token the stream
/// stands for. With the target layer at the end it is the logit lens.
///
/// ```
/// use tch_lens::lens::Patchscope;
/// use tch_lens::{HookedTransformer, LensOptions};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// // Each stream of the last position, in place of the one at the end of another prompt, in the same layer.
/// let scope = Patchscope::new(&model, "When Peter and Anna went to the park, Peter gave a ball to")?;
/// let read = scope.read(&cache, LensOptions::new().pos(-1))?;
/// println!("{}", read.rank_of(" Mary")?);
/// assert_eq!(read.rank_of(" Mary")?.rows.last().unwrap().1, 0); // the stream of the last layer says Mary in any prompt
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Patchscope {
    model: HookedTransformer,
    target: Tokens,
    layer: Option<Layer>,
    position: i64,
}

impl Patchscope {
    /// A Patchscope with this target prompt, patched at its last position, in the layer that the stream comes from.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`]; [`Error::WrongInput`] for several prompts.
    pub fn new(model: &HookedTransformer, target: impl Into<Input>) -> Result<Self> {
        let target = model.to_tokens(target)?;
        match target.ids.size()[0] {
            1 if target.mask.is_none() => {}
            rows => {
                return Err(Error::wrong_input(format!(
                    "a Patchscope has one target prompt, without padding, not {rows}"
                )))
            }
        }
        Ok(Patchscope { model: model.clone(), target, layer: None, position: -1 })
    }

    /// The block before which the stream is put in place, whatever layer it comes from; the number of layers is the stream after the last
    /// one.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`].
    pub fn layer(mut self, layer: impl Into<Layer>) -> Result<Self> {
        let layer = layer.into();
        if layer != self.model.config().n_layers.into() {
            self.model.config().layer(layer)?;
        }
        self.layer = Some(layer);
        Ok(self)
    }

    /// The position of the target prompt at which the stream is put in place; negative ones count from its end.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`].
    pub fn position(mut self, position: i64) -> Result<Self> {
        let len = self.target.ids.size()[1];
        if !(-len..len).contains(&position) {
            return Err(Error::SliceOutOfRange { slice: format!("index {position}"), axis: "position", len });
        }
        self.position = position;
        Ok(self)
    }

    /// Reads the streams of a cache, which may be of another model with the same width: for each, the logits at the end of the target prompt
    /// with this stream in it. Rows are the streams before each block and after the last one, as in
    /// [`logit_lens`](ActivationCache::logit_lens).
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::logit_lens`] and [`HookedTransformer::run`]; [`Error::Setting`] with `incl_mid`; [`Error::Shape`] for
    /// streams of another width; [`Error::LayerOutOfRange`] for a stream of a layer that this model does not have.
    pub fn read(&self, cache: &ActivationCache, options: LensOptions) -> Result<LogitLens> {
        cache.read_streams(options, "Patchscope", |row, stream| {
            let point = match row {
                Component::ResidPre(layer) => hook::resid_pre(*layer),
                Component::FinalPost => hook::stream_after(self.model.config(), -1),
                _ => return Ok(None),
            };
            let size = stream.size(); // [batch, pos, d_model]
            let logits = self.logits(point, &stream.f_flatten(0, 1)?)?; // [stream, d_vocab_out]
            Ok(Some(logits.f_view([size[0], size[1], -1])?))
        })
    }

    /// Continues the target prompt with a stream in it: the activation at a point of a cache's first row, at a position as in
    /// [`RunOptions::pos`].
    ///
    /// ```
    /// use tch_lens::lens::Patchscope;
    /// use tch_lens::{hook, GenerateOptions, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
    /// let scope = Patchscope::new(&model, "When Peter and Anna went to the park, Peter gave a ball to")?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(1);
    /// assert_eq!(scope.generate(&cache, hook::resid_post(3), -1, &options)?.rows[0].text(), " Mary");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`] and [`HookedTransformer::generate`]; [`Error::WrongInput`] for a point that is no residual stream;
    /// [`Error::SliceOutOfRange`], [`Error::PaddingChosen`] and [`Error::NoPosition`] for the position; [`Error::Shape`] for a stream of another
    /// width.
    pub fn generate(
        &self,
        cache: &ActivationCache,
        source: impl HookName,
        position: i64,
        options: &GenerateOptions,
    ) -> Result<Generated> {
        let point = source.resolve(cache.model().config())?;
        use hook::Site::{NormalizedResidPost, ResidMid, ResidPost, ResidPre};
        let streams = [ResidPre, ResidMid, ResidPost, NormalizedResidPost];
        if !streams.contains(&point.site()) {
            return Err(Error::wrong_input(format!(
                "`{point}` is no residual stream, such as `blocks.0.hook_resid_post`"
            )));
        }
        let columns = Positions::from(position).columns(&cache.columns_of_rows(vec![0])?)?.of_row(0);
        let held = cache.positions_of(point)?;
        let place = columns.first().and_then(|column| held.of_row(0).iter().position(|held| held == column));
        let Some(place) = place else {
            let held = held.to_string();
            return Err(Error::NoPosition { what: format!("`{point}`"), position, held, hint: String::new() });
        };
        let entry = cache.get(point)?;
        let row = if cache.has_batch_dim() { entry.f_select(0, 0)? } else { entry.shallow_clone() }; // [pos, d_model]
        let hooks = self.hooks(point, &row.f_narrow(0, place as i64, 1)?)?;
        self.model.generate_with(&self.target, options, StepOptions::new().hooks(hooks))
    }

    /// The logits at the end of the target prompt with each of these streams in it: `[stream, d_model]` to `[stream, d_vocab_out]`.
    fn logits(&self, point: HookPoint, streams: &Tensor) -> Result<Tensor> {
        let n = streams.size()[0];
        if n == 0 {
            let d_vocab_out = self.model.config().d_vocab_out as i64;
            return Ok(Tensor::f_zeros([0, d_vocab_out], (self.model.kind(), self.model.device()))?);
        }
        let mut logits = Vec::new();
        for first in (0..n).step_by(AT_ONCE as usize) {
            let some = streams.f_narrow(0, first, AT_ONCE.min(n - first))?;
            let len = self.target.ids.size()[1];
            let copies = Tokens {
                ids: self.target.ids.f_expand([some.size()[0], len], false)?.f_contiguous()?,
                mask: None,
                types: None,
            };
            let run = RunOptions::new().hooks(self.hooks(point, &some)?).logits_at(-1);
            logits.push(self.model.run(copies, run)?.take_logits()?.f_squeeze_dim(1)?);
            // [stream, d_vocab_out]
        }
        Ok(Tensor::f_cat(&logits, 0)?)
    }

    /// The patch of a batch of target prompts by streams that come from a point: `[stream, d_model]`.
    fn hooks(&self, point: HookPoint, streams: &Tensor) -> Result<Hooks<'static>> {
        let (found, d_model) = (streams.size(), self.model.config().d_model as i64);
        if found.last() != Some(&d_model) {
            let expected = format!("[stream, {d_model}], the width of the target's model");
            return Err(Error::Shape { what: "the tensor of streams".into(), found, expected });
        }
        let n_layers = self.model.config().n_layers;
        let target = match self.layer {
            None => point.resolve(self.model.config())?,
            Some(layer) if layer == n_layers.into() => {
                hook::stream_after(self.model.config(), -1).resolve(self.model.config())?
            }
            Some(layer) => hook::resid_pre(layer),
        };
        Ok(Hooks::new().patch(target, Patch::set(streams.shallow_clone()).pos(self.position)))
    }
}
