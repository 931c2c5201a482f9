//! [`Trainer`]: learns a dictionary, batch by batch.

use tch::{Kind, Tensor};

use super::adam::Parameter;
use super::initial::{directions, normed};
use super::objective::{objective, Leaves};
use super::options::{Sparsity, TrainerOptions};
use crate::hook::HookPoint;
use crate::sae::{Dictionary, DictionaryConfig, DictionaryWeights, FeatureActivation};
use crate::tensor::scalar::{full, Scalar};
use crate::{Error, Result};

/// Learns a sparse autoencoder or a transcoder from batches of activations.
///
/// Inputs and outputs are scaled to the norm `√d` on average over the first batch, which also gives the first `b_dec`; the dictionary has these
/// factors in its weights. After every step the decoder's rows have norm 1.
///
/// ```
/// use tch_lens::dictionary_learning::{Sparsity, Trainer, TrainerOptions};
/// use tch_lens::{hook, tch::{Device, Kind, Tensor}};
/// let options = TrainerOptions::new(16, Sparsity::TopK(2)).steps(5);
/// let mut trainer = Trainer::autoencoder(hook::resid_post(1), options)?;
/// while !trainer.is_done() {
///     let x = Tensor::randn([32, 8], (Kind::Float, Device::Cpu)); // [row, d_in]
///     let step = trainer.step(&x, &x)?;
///     assert!(step.l0 <= 2.0);
/// }
/// assert_eq!(trainer.dictionary()?.d_sae(), 16);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    pub(super) hooks: (HookPoint, HookPoint),
    pub(super) options: TrainerOptions,
    /// Steps that are done.
    pub(super) done: usize,
    pub(super) state: Option<State>,
}

/// What has been learned.
#[derive(Debug)]
pub(super) struct State {
    /// `W_enc`, `b_enc`, `W_dec`, `b_dec` and the logarithms of thresholds.
    pub(super) parameters: Vec<Parameter>,
    /// What inputs and outputs are multiplied by.
    pub(super) scales: [f64; 2],
    /// For how many steps each feature was not active: `[feature]`.
    pub(super) idle: Tensor,
    /// The mean of the smallest activations that were kept.
    pub(super) smallest: f64,
}

/// The names of the parameters in files.
pub(super) const NAMES: [&str; 5] = ["W_enc", "b_enc", "W_dec", "b_dec", "log_threshold"];

/// What came of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingStep {
    /// The number of this step, from 1.
    pub step: usize,
    /// The loss: the share of the variance that is not explained, with a JumpReLU dictionary's penalty and the dead features' part.
    pub loss: f64,
    /// The share of the batch's variance that the reconstruction explains.
    pub explained_variance: f64,
    /// Active features of a row, on average.
    pub l0: f64,
    /// Features that were not active for a while.
    pub dead: usize,
}

impl Trainer {
    /// A trainer of a dictionary that reconstructs the activation that it reads.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a number that cannot be used.
    pub fn autoencoder(hook: HookPoint, options: TrainerOptions) -> Result<Self> {
        Trainer::transcoder(hook, hook, options)
    }

    /// A trainer of a dictionary that reconstructs one activation from another.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a number that cannot be used.
    pub fn transcoder(hook_in: HookPoint, hook_out: HookPoint, options: TrainerOptions) -> Result<Self> {
        options.check()?;
        Ok(Trainer { hooks: (hook_in, hook_out), options, done: 0, state: None })
    }

    /// Whether all steps are done.
    pub fn is_done(&self) -> bool {
        self.done >= self.options.steps
    }

    /// How many steps are done.
    pub fn steps_done(&self) -> usize {
        self.done
    }

    /// Learns from one batch: activations `x`, `[…, d_in]`, and what is reconstructed from them, `y`, `[…, d_out]`; the same tensor for a sparse
    /// autoencoder.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where all steps are done, or where the batch has entries that are NaN; [`Error::Shape`] for other shapes than those before.
    pub fn step(&mut self, x: &Tensor, y: &Tensor) -> Result<TrainingStep> {
        if self.is_done() {
            return Err(Error::wrong_input(format!("the training has had its {} steps", self.options.steps)));
        }
        let (x, y) = (rows(x)?, rows(y)?);
        self.check(&x, &y)?;
        let _recording = crate::unchecked::autodiff::autodiff(true);
        let options = self.options.clone();
        if self.state.is_none() {
            self.state = Some(State::new(&x, &y, &options, self.hooks.0 == self.hooks.1)?);
        }
        let done = self.done;
        let state = self.state.as_mut().ok_or(Error::Internal("a training without a state"))?;
        let (x, y) = (x.mul_number(state.scales[0])?, y.mul_number(state.scales[1])?);
        let leaves = state.leaves()?;
        let dead = state.idle.gt_number(options.dead_after as f64 - 0.5)?; // [feature]
        let n_dead = i64::try_from(dead.f_sum(Kind::Int64)?)?.max(0) as usize;
        let helps = n_dead > 0 && options.auxiliary > 0 && !matches!(options.sparsity, Sparsity::JumpRelu { .. });
        let of_dead = helps.then_some((&dead, options.auxiliary.min(n_dead)));
        let outcome = objective(&leaves, &x, &y, options.sparsity, options.penalty_at(done), of_dead)?;
        let loss = f64::try_from(outcome.loss.f_detach()?)?;
        if !loss.is_finite() {
            return Err(Error::wrong_input(
                "the loss is no number: a batch has entries that are NaN or infinite, or the learning rate is too high",
            ));
        }
        let all = [&leaves.w_enc, &leaves.b_enc, &leaves.w_dec, &leaves.b_dec, &leaves.threshold];
        let learned = if matches!(options.sparsity, Sparsity::JumpRelu { .. }) { 5 } else { 4 };
        let gradients = Tensor::f_run_backward(&[&outcome.loss], &all[..learned], false, false)?;
        let _no_gradients = crate::unchecked::autodiff::autodiff(false);
        state.follow(&gradients, options.rate_at(done), done)?;
        let active = outcome.acts.f_count_nonzero(0)?.gt_number(0.0)?; // [feature]
        state.idle = state.idle.add_number(1.0)?.f_mul(&active.f_logical_not()?)?;
        state.remember_smallest(&outcome.acts, done)?;
        self.done += 1;
        let n_rows = outcome.acts.size().first().copied().unwrap_or(1).max(1) as f64;
        Ok(TrainingStep {
            step: self.done,
            loss,
            explained_variance: 1.0 - f64::try_from(outcome.unexplained)?,
            l0: i64::try_from(outcome.acts.f_count_nonzero(None)?)? as f64 / n_rows,
            dead: n_dead,
        })
    }

    /// Learns from a stream of batches until all steps are done or the stream ends; `progress` is shown every step.
    ///
    /// # Errors
    ///
    /// Those of the stream and of [`Trainer::step`].
    pub fn fit(
        &mut self,
        batches: impl IntoIterator<Item = Result<(Tensor, Tensor)>>,
        mut progress: impl FnMut(&TrainingStep),
    ) -> Result<()> {
        for batch in batches {
            if self.is_done() {
                break;
            }
            let (x, y) = batch?;
            progress(&self.step(&x, &y)?);
        }
        Ok(())
    }

    /// The dictionary as it is learned so far.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] before the first step.
    pub fn dictionary(&self) -> Result<Dictionary> {
        let state = self
            .state
            .as_ref()
            .ok_or_else(|| Error::wrong_input("nothing is learned yet: give the trainer a batch"))?;
        let [into, out_of] = state.scales;
        let value = |n: usize| {
            state
                .parameters
                .get(n)
                .map(|parameter| &parameter.value)
                .ok_or(Error::Internal("a parameter that is missing"))
        };
        // With x scaled by s and y by t: features are those of the scaled input, and y = acts W_dec / t + b_dec / t.
        let activation = match self.options.sparsity {
            Sparsity::TopK(k) => FeatureActivation::TopK(k),
            Sparsity::BatchTopK(_) | Sparsity::JumpRelu { .. } => FeatureActivation::JumpRelu,
        };
        let threshold = match self.options.sparsity {
            Sparsity::TopK(_) => None,
            Sparsity::BatchTopK(_) => {
                Some(full(&[self.options.d_sae as i64], state.smallest, (Kind::Float, value(0)?.device()))?)
            }
            Sparsity::JumpRelu { .. } => Some(value(4)?.f_exp()?),
        };
        let weights = DictionaryWeights {
            w_enc: value(0)?.mul_number(into)?,
            b_enc: value(1)?.f_alias_copy()?,
            w_dec: value(2)?.div_number(out_of)?,
            b_dec: value(3)?.div_number(out_of)?,
            w_skip: None,
            threshold,
            b_gate: None,
            r_mag: None,
        };
        let (read, out) = self.hooks;
        let config =
            DictionaryConfig { hook_out: out, apply_b_dec_to_input: false, ..DictionaryConfig::new(read, activation) };
        Dictionary::new(config, weights)
    }

    /// That a batch is one of the training.
    fn check(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let wrong = |what: &str, expected: String, found: &Tensor| {
            Err(Error::Shape { what: what.into(), expected, found: found.size() })
        };
        if x.size().first() != y.size().first() || x.size().first() == Some(&0) {
            return wrong(
                "the reconstructed activation",
                format!("as many rows as the input's {:?}, at least one", x.size()),
                y,
            );
        }
        let Some(state) = &self.state else { return Ok(()) };
        let width = |n: usize, dim: usize| state.parameters.get(n).and_then(|p| p.value.size().get(dim).copied());
        if x.size().last().copied() != width(0, 1) {
            return wrong("the input", format!("[row, {}]", width(0, 1).unwrap_or(0)), x);
        }
        if y.size().last().copied() != width(2, 1) {
            return wrong("the reconstructed activation", format!("[row, {}]", width(2, 1).unwrap_or(0)), y);
        }
        Ok(())
    }
}

impl State {
    /// Fresh parameters: the decoder's rows are random directions, the encoder's the same (or others, where input and output differ), and
    /// `b_dec` is the mean of the first batch.
    fn new(x: &Tensor, y: &Tensor, options: &TrainerOptions, same: bool) -> Result<Self> {
        let scale = |x: &Tensor| -> Result<f64> {
            let norm = f64::try_from(x.norm_over(&[-1], false)?.f_mean(Kind::Double)?)?;
            let d = x.size().last().copied().unwrap_or(1) as f64;
            match norm > 0.0 && norm.is_finite() {
                true => Ok(d.sqrt() / norm),
                false => {
                    Err(Error::wrong_input("the first batch has no activation that is not 0, or some that are NaN"))
                }
            }
        };
        let scales = [scale(x)?, scale(y)?];
        let (d_in, d_out) = (x.size()[1] as usize, y.size()[1] as usize);
        let device = x.device();
        let w_dec = directions(options.d_sae, d_out, options.seed, device)?;
        let w_enc = match same {
            true => w_dec.shallow_clone(),
            false => directions(options.d_sae, d_in, options.seed.wrapping_add(1), device)?,
        };
        let mean = |x: &Tensor, scale: f64| -> Result<Tensor> {
            x.f_mean_dim([0i64].as_slice(), false, None)?.mul_number(scale)
        };
        let zeros = Tensor::f_zeros([options.d_sae as i64], (Kind::Float, device))?;
        // Features are about the deviation of the input from its mean.
        let b_enc = w_enc.f_matmul(&mean(x, scales[0])?)?.f_neg()?;
        let values = [w_enc, b_enc, w_dec, mean(y, scales[1])?, zeros.add_number((0.1f64).ln())?];
        let parameters = values.into_iter().map(Parameter::new).collect::<Result<_>>()?;
        Ok(State { parameters, scales, idle: zeros, smallest: 0.0 })
    }

    fn leaves(&self) -> Result<Leaves> {
        let leaf = |n: usize| self.parameters.get(n).ok_or(Error::Internal("a parameter that is missing"))?.leaf();
        Ok(Leaves { w_enc: leaf(0)?, b_enc: leaf(1)?, w_dec: leaf(2)?, b_dec: leaf(3)?, threshold: leaf(4)? })
    }

    /// Follows the gradients. The decoder's rows keep norm 1: their gradient along themselves is left out.
    fn follow(&mut self, gradients: &[Tensor], rate: f64, step: usize) -> Result<()> {
        for (n, (parameter, gradient)) in self.parameters.iter_mut().zip(gradients).enumerate() {
            if NAMES.get(n) == Some(&"W_dec") {
                let along = gradient.f_mul(&parameter.value)?.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
                parameter.follow(&gradient.f_sub(&along.f_mul(&parameter.value)?)?, rate, step)?;
                parameter.value = normed(&parameter.value)?;
            } else {
                parameter.follow(gradient, rate, step)?;
            }
        }
        Ok(())
    }

    /// Averages the smallest activation that was kept.
    fn remember_smallest(&mut self, acts: &Tensor, step: usize) -> Result<()> {
        let kept = acts.f_masked_select(&acts.gt_number(0.0)?)?;
        if kept.numel() > 0 {
            let smallest = f64::try_from(kept.f_min()?)?;
            let share = if step == 0 { 1.0 } else { 0.02 };
            self.smallest += share * (smallest - self.smallest);
        }
        Ok(())
    }
}

/// Activations as rows, in fp32: `[row, d]`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let size = x.size();
    match size[..] {
        [.., width] if size.len() >= 2 && width > 0 => {
            Ok(x.f_detach()?.f_reshape([-1, width])?.f_to_kind(Kind::Float)?)
        }
        _ => Err(Error::Shape { what: "a batch of activations".into(), expected: "[…, d]".into(), found: size }),
    }
}
