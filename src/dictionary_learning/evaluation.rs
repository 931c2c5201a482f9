//! [`evaluate`]: what a model loses with dictionaries in its runs, and what the dictionaries do, over texts.

use tch::{Kind, Tensor};

use crate::hook::{self, HookPoint};
use crate::sae::{Dictionary, SaeOptions, SparseFeatures};
use crate::text::input::Input;
use crate::{Error, HookedTransformer, Hooks, Patch, Result, ReturnType, RunOptions};

/// What a model loses with dictionaries in its runs, and what the dictionaries do.
#[derive(Debug)]
pub struct Evaluation {
    /// The mean next-token cross entropy of the model, in nats.
    pub loss: f64,
    /// The same with all dictionaries in the runs, without error terms.
    pub loss_with_saes: f64,
    /// The same with the reconstructed activations set to zero.
    pub loss_with_zeros: f64,
    /// How many tokens count: those that are predicted.
    pub predicted: usize,
    /// Each dictionary, in the order in which they were given.
    pub dictionaries: Vec<DictionaryEvaluation>,
}

/// What one dictionary does, on the activations of the model itself.
#[derive(Debug)]
pub struct DictionaryEvaluation {
    /// The activation that it reconstructs.
    pub hook: HookPoint,
    /// Active features of a position, on average.
    pub l0: f64,
    /// The share of the activation's variance that the reconstruction explains: `1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²`.
    pub explained_variance: f64,
    /// At how many positions each feature was active: `[feature]`, int64.
    pub active: Tensor,
    /// How many positions count: all that are no padding.
    pub positions: usize,
}

impl Evaluation {
    /// The share of the loss that the reconstructions recover: 1 where the loss is the model's, 0 where it is that with zeros.
    pub fn loss_recovered(&self) -> f64 {
        (self.loss_with_zeros - self.loss_with_saes) / (self.loss_with_zeros - self.loss)
    }
}

impl DictionaryEvaluation {
    /// The features that were never active.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if memory runs out.
    pub fn dead_features(&self) -> Result<Vec<i64>> {
        let dead = self.active.f_logical_not()?.f_nonzero()?.f_reshape([-1i64])?;
        Ok(Vec::try_from(dead)?)
    }
}

/// Sums over all positions of all texts.
struct Sums {
    positions: i64,
    squares: f64,
    errors: f64,
    total: Option<Tensor>, // [d]
    active: Tensor,        // [feature]
}

/// Measures dictionaries over texts: each text, or batch of texts, is one run with them, one without, and one with zeros in place of the
/// activations that they reconstruct.
///
/// ```
/// use tch_lens::dictionary_learning::{activations, evaluate, Sparsity, Trainer, TrainerOptions};
/// use tch_lens::{hook, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let texts = ["When Mary and John went to the shop, John gave a bag to Mary", "The capital of France is Paris"];
/// let options = TrainerOptions::new(64, Sparsity::TopK(8)).steps(20);
/// let mut trainer = Trainer::autoencoder(hook::resid_post(1), options)?;
/// let batch = || activations(&model, hook::resid_post(1), hook::resid_post(1), texts[0]);
/// trainer.fit(std::iter::repeat_with(batch), |_| ())?;
/// let evaluation = evaluate(&model, [trainer.dictionary()?], texts)?;
/// assert!(evaluation.dictionaries[0].l0 <= 8.0);
/// println!("{:.2} of the loss is recovered", evaluation.loss_recovered());
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::WrongInput`] without a text or a dictionary; those of [`HookedTransformer::with_saes`] and [`HookedTransformer::run`].
pub fn evaluate<I: Into<Input>>(
    model: &HookedTransformer,
    saes: impl IntoIterator<Item = Dictionary>,
    texts: impl IntoIterator<Item = I>,
) -> Result<Evaluation> {
    let saes: Vec<Dictionary> = saes.into_iter().collect();
    let plain = model.without_saes();
    let spliced = plain.with_saes(saes.clone(), SaeOptions::new())?;
    // With error terms, each dictionary reads what the model itself computes.
    let exact = plain.with_saes(saes.clone(), SaeOptions::new().error_term(true))?;
    let outs: Vec<HookPoint> = exact.transformer().spliced_points();
    if outs.is_empty() {
        return Err(Error::wrong_input("an evaluation needs at least one dictionary"));
    }
    let kept = outs.iter().flat_map(|out| [hook::sae_acts_post(*out), hook::sae_error(*out), *out]).collect::<Vec<_>>();
    let mut sums = Vec::new();
    for sae in &saes {
        let active = Tensor::f_zeros([sae.d_sae() as i64], (Kind::Int64, sae.device()))?;
        sums.push(Sums { positions: 0, squares: 0.0, errors: 0.0, total: None, active });
    }
    let (mut losses, mut predicted) = ([0.0; 3], 0);
    for text in texts {
        let tokens = plain.to_tokens(text)?;
        let loss = |model: &HookedTransformer, hooks: Hooks<'_>| -> Result<f64> {
            let run = RunOptions::new().hooks(hooks).return_type(ReturnType::LossPerToken);
            let losses = model.run(&tokens, run)?;
            Ok(losses.loss_tensor()?.f_sum(Kind::Double)?.f_double_value(&[])?)
        };
        let zeros = Hooks::new().patch(outs.clone(), Patch::zero());
        let of_text = [loss(&plain, Hooks::new())?, loss(&spliced, Hooks::new())?, loss(&plain, zeros)?];
        losses.iter_mut().zip(of_text).for_each(|(sum, loss)| *sum += loss);
        let [batch, len] = [tokens.ids.size()[0], tokens.ids.size()[1]];
        let real = match &tokens.mask {
            Some(mask) => mask.f_to_kind(Kind::Int64)?.f_sum(Kind::Int64)?.f_int64_value(&[])?,
            None => batch * len,
        };
        predicted += (real - batch).max(0) as usize;
        let cache = exact.run(&tokens, RunOptions::new().cache(kept.clone()).return_type(ReturnType::None))?.cache;
        for (out, sums) in outs.iter().zip(&mut sums) {
            let rows = |point: HookPoint| -> Result<Tensor> { real_rows(cache.get(point)?, tokens.mask.as_ref()) };
            let acts = cache.sparse(hook::sae_acts_post(*out))?;
            let real = real_rows(&acts.numbers()?.f_unsqueeze(-1)?, tokens.mask.as_ref())?.f_reshape([-1i64])?;
            sums.add(&rows(*out)?, &rows(hook::sae_error(*out))?, &acts.at(&real)?)?;
        }
    }
    if predicted == 0 {
        return Err(Error::wrong_input("an evaluation needs a text of at least two tokens"));
    }
    let [loss, loss_with_saes, loss_with_zeros] = losses.map(|sum| sum / predicted as f64);
    let dictionaries = outs.into_iter().zip(sums).map(|(out, sums)| sums.evaluation(out)).collect::<Result<_>>()?;
    Ok(Evaluation { loss, loss_with_saes, loss_with_zeros, predicted, dictionaries })
}

/// What a dictionary is trained on: the activations at `hook_in` and `hook_out` of a run, without padding, as rows: `[row, d_in]` and
/// `[row, d_out]`. Heads stand side by side.
///
/// # Errors
///
/// Those of [`HookedTransformer::run`].
pub fn activations(
    model: &HookedTransformer,
    hook_in: HookPoint,
    hook_out: HookPoint,
    input: impl Into<Input>,
) -> Result<(Tensor, Tensor)> {
    let tokens = model.to_tokens(input)?;
    let points = if hook_in == hook_out { vec![hook_in] } else { vec![hook_in, hook_out] };
    let cache = model.run(&tokens, RunOptions::new().cache(points).return_type(ReturnType::None))?.cache;
    let rows = |point: HookPoint| -> Result<Tensor> { real_rows(cache.get(point)?, tokens.mask.as_ref()) };
    let x = rows(hook_in)?;
    let y = if hook_in == hook_out { x.shallow_clone() } else { rows(hook_out)? };
    Ok((x, y))
}

/// The positions of an activation that are no padding, as rows: `[row, d]`.
fn real_rows(activation: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let size = activation.size();
    let [batch, pos, ..] = size[..] else {
        return Err(Error::Shape {
            what: "an activation with positions".into(),
            expected: "[batch, pos, …]".into(),
            found: size,
        });
    };
    let rows = activation.f_reshape([batch.saturating_mul(pos), -1])?;
    match mask {
        None => Ok(rows),
        Some(mask) => Ok(rows.f_index_select(0, &mask.f_reshape([-1i64])?.f_nonzero()?.f_reshape([-1i64])?)?),
    }
}

impl Sums {
    fn add(&mut self, y: &Tensor, error: &Tensor, acts: &SparseFeatures) -> Result<()> {
        let squares = |x: &Tensor| -> Result<f64> {
            Ok(x.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?)
        };
        self.positions += y.size().first().copied().unwrap_or(0);
        self.squares += squares(y)?;
        self.errors += squares(error)?;
        let sum = y.f_to_kind(Kind::Double)?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
        self.total = Some(match &self.total {
            Some(total) => total.f_add(&sum)?,
            None => sum,
        });
        self.active = self.active.f_add(&acts.counts()?)?;
        Ok(())
    }

    fn evaluation(self, hook: HookPoint) -> Result<DictionaryEvaluation> {
        let n = self.positions.max(1) as f64;
        let square_of_sum = match &self.total {
            Some(total) => total.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?,
            None => 0.0,
        };
        let active = self.active.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        Ok(DictionaryEvaluation {
            hook,
            l0: active as f64 / n,
            explained_variance: 1.0 - self.errors / (self.squares - square_of_sum / n),
            active: self.active,
            positions: self.positions.max(0) as usize,
        })
    }
}
