//! The fit of a [`JacobianLens`]: means of vector-Jacobian products over positions and prompts.

use tch::{Device, Kind, Tensor};

use super::jacobian::JacobianLens;
use super::tensors::kind;
use crate::config::AttentionDir;
use crate::hook::{self, HookPoint};
use crate::layer::Layer;
use crate::run::Order;
use crate::tensor::scalar::{full, Scalar};
use crate::text::input::Input;
use crate::{autodiff, Error, HookedTransformer, Result, ReturnType, RunOptions};

/// The settings of [`JacobianLens::fit`]; the defaults are those of the published lenses.
#[derive(Clone, Debug)]
pub struct JacobianLensOptions {
    layers: Option<Vec<Layer>>,
    skip_first: usize,
    max_tokens: usize,
    rows: usize,
}

impl Default for JacobianLensOptions {
    fn default() -> Self {
        JacobianLensOptions { layers: None, skip_first: 16, max_tokens: 128, rows: 8 }
    }
}

impl JacobianLensOptions {
    /// All layers but the last, without the first 16 positions, of prompts of up to 128 tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// The layers after which streams will be read; the last one needs no fit.
    pub fn layers(mut self, layers: impl IntoIterator<Item = impl Into<Layer>>) -> Self {
        self.layers = Some(layers.into_iter().map(Into::into).collect());
        self
    }

    /// How many positions at the start of each prompt do not count: attention gathers there, and streams are unlike others.
    pub fn skip_first(mut self, positions: usize) -> Self {
        self.skip_first = positions;
        self
    }

    /// How many tokens of each prompt are used at most.
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// How many rows of the matrices one backward pass gives: as many copies of the prompt are run. It changes memory and time only.
    pub fn rows_at_once(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }
}

impl JacobianLens {
    /// Fits a lens: for each layer `l`, the mean over prompts of
    ///
    /// `J_l = 1/|V| · Σ_{t ∈ V} Σ_{t' ∈ V, t' ≥ t} ∂ h_last[t'] / ∂ h_l[t]`,
    ///
    /// where `h_l` is the stream after block `l`, `h_last` the one after the last block, and `V` the positions of the prompt without the first
    /// [`skip_first`](JacobianLensOptions::skip_first) ones and without the last one (Gurnee et al. 2026; TransformerLens 4's `JacobianLens.fit`).
    ///
    /// One forward pass for each prompt, and `d_model / rows_at_once` backward passes, serve all layers. Sums are made in fp32 or better; the
    /// derivatives are in the model's kind, so fit in fp32. About 100 prompts of 128 tokens are enough for a readable lens.
    ///
    /// ```
    /// use tch_lens::lens::{JacobianLens, JacobianLensOptions};
    /// use tch_lens::{HookedTransformer, LensOptions};
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to";
    /// let options = JacobianLensOptions::new().skip_first(1).layers([1, 2]).rows_at_once(32);
    /// let lens = JacobianLens::fit(&model, [prompt], options)?;
    /// let (_, cache) = model.run_with_cache(prompt)?;
    /// let read = lens.read(&cache, LensOptions::new().pos(-1))?;
    /// assert_eq!(read.labels(), ["2_pre", "3_pre", "final_post"]); // the streams after blocks 1, 2 and 3
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a bidirectional model; [`Error::WrongInput`] for no prompts, and for one with too few tokens, which is named; [`Error::Setting`];
    /// [`Error::LayerOutOfRange`]; those of [`HookedTransformer::run`].
    pub fn fit<I: Into<Input>>(
        model: &HookedTransformer,
        prompts: impl IntoIterator<Item = I>,
        options: JacobianLensOptions,
    ) -> Result<Self> {
        let JacobianLensOptions { layers, skip_first, max_tokens, rows } = options;
        if rows == 0 {
            return Err(Error::option_value("rows_at_once", rows, "it must be at least 1"));
        }
        if model.config().attention.direction == AttentionDir::Bidirectional {
            return Err(Error::unsupported(
                "a Jacobian lens sums over the positions after a token, and this model's tokens act on those before them as well: use a causal model",
            ));
        }
        let layers = source_layers(model, layers)?;
        let mut sums: Option<Vec<Tensor>> = None;
        let mut n_prompts = 0;
        for input in prompts {
            for mut ids in model.to_tokens(input)?.rows()? {
                ids.truncate(max_tokens);
                if ids.len() < skip_first + 2 {
                    return Err(Error::wrong_input(format!(
                        "prompt {n_prompts} has {} tokens, but {} are needed: leave it out, or change `skip_first` or `max_tokens`",
                        ids.len(),
                        skip_first + 2
                    )));
                }
                let of_prompt = of_prompt(model, &ids, &layers, skip_first, rows)?;
                sums = Some(match sums.take() {
                    None => of_prompt,
                    Some(sums) => {
                        let added = sums.iter().zip(&of_prompt).map(|(sum, more)| Ok(sum.f_add(more)?));
                        added.collect::<Result<_>>()?
                    }
                });
                n_prompts += 1;
            }
        }
        let Some(sums) = sums else {
            return Err(Error::wrong_input("a Jacobian lens is a mean over prompts: give at least one"));
        };
        let means = layers.into_iter().zip(sums);
        let means = means.map(|(layer, sum)| Ok((layer, sum.div_number(n_prompts as f64)?)));
        JacobianLens::new(model, means.collect::<Result<Vec<_>>>()?, n_prompts)
    }
}

/// The layers to fit, in order.
fn source_layers(model: &HookedTransformer, layers: Option<Vec<Layer>>) -> Result<Vec<usize>> {
    let last = model.config().n_layers.saturating_sub(1);
    let layers = match layers {
        None => (0..last).collect(),
        Some(layers) => {
            let mut layers = layers.into_iter().map(|it| model.config().layer(it)).collect::<Result<Vec<_>>>()?;
            layers.sort_unstable();
            layers.dedup();
            layers
        }
    };
    match layers.last() {
        None => Err(Error::wrong_input(
            "there is no layer to fit: a Jacobian lens maps streams to the one after the last block",
        )),
        Some(layer) if *layer == last => Err(Error::wrong_input(format!(
            "layer {last} is the last one, whose stream is read as it is: leave it out"
        ))),
        Some(_) => Ok(layers),
    }
}

/// The matrices of one prompt, `[d_model, d_model]` for each layer: row `i` is the gradient of entry `i` of the last stream.
fn of_prompt(
    model: &HookedTransformer,
    ids: &[i64],
    layers: &[usize],
    skip_first: usize,
    rows: usize,
) -> Result<Vec<Tensor>> {
    let config = model.config();
    let d_model = config.d_model as i64;
    let rows = (rows as i64).min(d_model);
    let points: Vec<HookPoint> = layers.iter().map(|layer| hook::stream_after(config, *layer)).collect();
    let last = hook::stream_after(config, config.n_layers - 1);
    let _recording = autodiff(true);
    let run = RunOptions::new().cache([points.clone(), vec![last]].concat()).return_type(ReturnType::None);
    let copies = Input::Ids(vec![ids.to_vec(); rows as usize]);
    let (output, _) = model.run_recorded(copies, run.differentiable(Order::Once))?;
    let of = output.cache.get(last)?; // [row, pos, d_model]
    let at = points.iter().map(|point| output.cache.get(*point)).collect::<Result<Vec<_>>>()?;
    let (first, count) = (skip_first as i64, (ids.len() - 1 - skip_first) as i64);
    // One at the positions that count: an entry of the last stream at all of them at once, as no position depends on a later one.
    let options = (of.f_kind()?, of.device());
    let before = full(&[first], 0.0, options)?;
    let counted = Tensor::f_cat(&[before, full(&[count], 1.0, options)?, full(&[1], 0.0, options)?], 0)?; // [pos]
    let passes = d_model.div_euclid(rows) + i64::from(d_model % rows != 0);
    // Rows behind the last entry are zero.
    let entries = Tensor::f_eye_m(passes * rows, d_model, (Kind::Float, Device::Cpu))?;
    let entries = entries.f_to_kind(options.0)?.f_to_device(options.1)?; // [pass · row, d_model]
    let mut parts: Vec<Vec<Tensor>> = layers.iter().map(|_| Vec::new()).collect();
    for pass in 0..passes {
        let of_pass = entries.f_narrow(0, pass * rows, rows)?.f_unsqueeze(1)?; // [row, 1, d_model]
        let vector = of_pass.f_mul(&counted.f_unsqueeze(-1)?)?; // [row, pos, d_model]
        let product = of.f_mul(&vector)?.f_sum(options.0)?;
        let gradients = Tensor::f_run_backward(&[product], &at, pass + 1 < passes, false)?;
        for (part, gradient) in parts.iter_mut().zip(gradients) {
            let counted = gradient.f_narrow(1, first, count)?.f_to_kind(kind(model))?; // [row, counted, d_model]
            part.push(counted.f_mean_dim([1i64].as_slice(), false, None)?);
        }
    }
    let whole = |part: Vec<Tensor>| Ok(Tensor::f_cat(&part, 0)?.f_narrow(0, 0, d_model)?);
    parts.into_iter().map(whole).collect()
}
