//! The fit of a probe, and of its control.

use tch::{Kind, Tensor};

use super::data::{ProbeData, Split};
use super::logistic;
use super::result::{LinearProbe, ProbeResult};
use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// How a probe is fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeMethod {
    /// Multinomial logistic regression: the mean cross entropy and `l2/2 · ‖W‖²`. Scikit-learn's `C` is `1 / (l2 · examples)`.
    #[default]
    Logistic,
    /// Ridge regression to one for the label and zero for other classes: half of the mean squared error and `l2/2 · ‖W‖²`.
    Ridge,
}

/// To what the random labels of a control are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControlLabels {
    /// One to each token of the vocabulary (Hewitt and Liang 2019): a probe that knows tokens only does as well on them. Vectors without a
    /// cache are a kind of their own each.
    #[default]
    ByToken,
    /// One to each example: for examples of one token, such as the last one of each prompt. A probe can only remember them.
    ByExample,
}

/// The settings of [`ProbeData::fit`].
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    method: ProbeMethod,
    l2: f64,
    test_fraction: f64,
    standardize: bool,
    control: ControlLabels,
    seed: u64,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        ProbeOptions {
            method: ProbeMethod::default(),
            l2: 1e-3,
            test_fraction: 0.25,
            standardize: true,
            control: ControlLabels::default(),
            seed: 0,
        }
    }
}

impl ProbeOptions {
    /// Logistic regression on standardized activations, with a quarter of the groups for the test.
    pub fn new() -> Self {
        Self::default()
    }

    /// How the probe is fitted.
    pub fn method(mut self, method: ProbeMethod) -> Self {
        self.method = method;
        self
    }

    /// The weight of the squared length of the weights, above zero.
    pub fn l2(mut self, l2: f64) -> Self {
        self.l2 = l2;
        self
    }

    /// The share of the groups that the probe is judged on, between 0 and 1.
    pub fn test_fraction(mut self, fraction: f64) -> Self {
        self.test_fraction = fraction;
        self
    }

    /// Whether each entry of the activations is shifted and scaled to mean 0 and standard deviation 1 over the training examples before the
    /// fit; yes by default. The weights are given for the activations as they are.
    pub fn standardize(mut self, yes: bool) -> Self {
        self.standardize = yes;
        self
    }

    /// To what the control's random labels are given; to each token by default.
    pub fn control(mut self, labels: ControlLabels) -> Self {
        self.control = labels;
        self
    }

    /// What the split and the control's labels depend on.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self) -> Result<()> {
        if !(self.l2 > 0.0 && self.l2.is_finite()) {
            return Err(Error::option_value("l2", self.l2, "it must be above zero"));
        }
        if !(self.test_fraction > 0.0 && self.test_fraction < 1.0) {
            return Err(Error::option_value("test_fraction", self.test_fraction, "it must be between 0 and 1"));
        }
        Ok(())
    }
}

impl ProbeData {
    /// Fits a probe on a part of the examples, and the same on random labels; judges both on the others.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`]; [`Error::WrongInput`] for fewer than two groups, a control whose labels are all the same, as where all examples are
    /// of one token, and where the logistic fit does not converge.
    pub fn fit(&self, options: &ProbeOptions) -> Result<ProbeResult> {
        options.check()?;
        let split = self.split(options.test_fraction, options.seed)?;
        let rows = |examples: &[i64]| -> Result<Tensor> {
            Ok(self.features.f_index_select(0, &Tensor::f_from_slice(examples)?)?)
            // [example, d]
        };
        let (train, test) = (rows(&split.train)?, rows(&split.test)?);
        let of = |labels: &[usize], examples: &[i64]| -> Vec<i64> {
            examples.iter().map(|example| labels[*example as usize] as i64).collect()
        };
        let fitted = |labels: &[usize]| -> Result<(LinearProbe, f64, f64)> {
            let probe = probe(&train, &of(labels, &split.train), self.n_classes, options)?;
            let accuracy = |x: &Tensor, labels: Vec<i64>| probe.accuracy(x, &labels);
            let on_train = accuracy(&train, of(labels, &split.train))?;
            let on_test = accuracy(&test, of(labels, &split.test))?;
            Ok((probe, on_train, on_test))
        };
        let (probe, train_accuracy, test_accuracy) = fitted(&self.labels)?;
        let control = self.control_labels(options.control, options.seed);
        let of_training = of(&control, &split.train);
        if of_training.iter().all(|label| Some(label) == of_training.first()) {
            return Err(Error::wrong_input(
                "the control gives all examples of the training the same label: where they are of one token, use \
                 `control(ControlLabels::ByExample)`, and else another `seed`",
            ));
        }
        let (_, _, control_accuracy) = fitted(&control)?;
        Ok(ProbeResult {
            probe,
            train_accuracy,
            test_accuracy,
            control_accuracy,
            majority_accuracy: self.majority_accuracy(&split),
            n_train: split.train.len(),
            n_test: split.test.len(),
        })
    }

    /// The accuracy on the test of the class that is most frequent in training.
    fn majority_accuracy(&self, split: &Split) -> f64 {
        let count = |examples: &[i64], class: usize| {
            examples.iter().filter(|example| self.labels[**example as usize] == class).count()
        };
        let majority = (0..self.n_classes).max_by_key(|class| count(&split.train, *class)).unwrap_or(0);
        count(&split.test, majority) as f64 / split.test.len().max(1) as f64
    }
}

/// A probe of these activations, `[example, d]`, and labels.
fn probe(x: &Tensor, labels: &[i64], n_classes: usize, options: &ProbeOptions) -> Result<LinearProbe> {
    let mean = x.f_mean_dim([0i64].as_slice(), false, None)?; // [d]
    let centered = x.f_sub(&mean)?;
    let scale = match options.standardize {
        true => {
            let scale = centered.f_square()?.f_mean_dim([0i64].as_slice(), false, None)?.f_sqrt()?; // [d]
                                                                                                    // An entry that is the same in all examples says nothing, and stays zero.
            let constant = scale.gt_number(0.0)?.f_logical_not()?;
            scale.fill_where(&constant, 1.0)?
        }
        false => mean.f_ones_like()?,
    };
    let (x, d) = (centered.f_div(&scale)?, x.size()[1]);
    let y = Tensor::f_from_slice(labels)?.f_one_hot(n_classes as i64)?.f_to_kind(Kind::Double)?; // [example, class]
    let (weights, bias) = match options.method {
        ProbeMethod::Logistic => {
            let ones = Tensor::f_ones([x.size()[0], 1], (Kind::Double, x.device()))?;
            let all = logistic::minimum(&Tensor::f_cat(&[&x, &ones], 1)?, &y, options.l2)?; // [class, d + 1]
            (all.f_narrow(1, 0, d)?, all.f_select(1, d)?)
        }
        ProbeMethod::Ridge => {
            // The activations' mean is zero, so the bias is the labels' mean.
            let bias = y.f_mean_dim([0i64].as_slice(), false, None)?; // [class]
            let share = 1.0 / x.size()[0].max(1) as f64;
            let covariance = x.f_tr()?.f_matmul(&x)?.mul_number(share)?; // [d, d]
            let l2 = Tensor::f_eye(d, (Kind::Double, x.device()))?.mul_number(options.l2)?;
            let with_labels = x.f_tr()?.f_matmul(&y.f_sub(&bias)?)?.mul_number(share)?; // [d, class]
            (Tensor::f_linalg_solve(&covariance.f_add(&l2)?, &with_labels, true)?.f_tr()?, bias)
        }
    };
    // Back to the activations as they are.
    let weights = weights.f_div(&scale)?; // [class, d]
    let bias = bias.f_sub(&weights.f_matmul(&mean)?)?;
    Ok(LinearProbe { weights: weights.into(), bias: bias.into() })
}
