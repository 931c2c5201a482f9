//! [`SteeringVector`]: a direction that makes the difference between texts of two kinds, added while a model runs or generates.

use tch::{Kind, Tensor};

use crate::cache::ActivationCache;
use crate::hook::{Extent, HookName, HookPoint};
use crate::run::{Hooks, Patch};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::text::input::Input;
use crate::text::positions::Positions;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, HookedTransformer, Result, ReturnType, RunOptions};

/// How a direction is made from the differences of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SteeringMethod {
    /// Their mean (Turner et al. 2023, "Activation Addition"; Panickssery et al. 2024, "Contrastive Activation Addition").
    #[default]
    MeanDifference,
    /// Their first principal component, without centering, from the negative to the positive side and as long as the differences are along
    /// it on average (Zou et al. 2023, "Representation Engineering").
    Pca,
}

/// The settings of [`SteeringVector::from_pairs`].
#[derive(Clone, Debug)]
pub struct SteeringOptions {
    method: SteeringMethod,
    positions: Positions,
}

impl Default for SteeringOptions {
    fn default() -> Self {
        SteeringOptions { method: SteeringMethod::default(), positions: Positions::LastToken }
    }
}

impl SteeringOptions {
    /// The mean difference at the last token of each text.
    pub fn new() -> Self {
        Self::default()
    }

    /// How the direction is made.
    pub fn method(mut self, method: SteeringMethod) -> Self {
        self.method = method;
        self
    }

    /// Where the texts are compared; of several positions, their mean is.
    pub fn pos(mut self, positions: impl Into<Positions>) -> Self {
        self.positions = positions.into();
        self
    }
}

/// A direction at a hook point: what texts of one kind have there, and texts of another do not.
///
/// ```
/// use tch_lens::steering::{SteeringOptions, SteeringVector};
/// use tch_lens::{hook, GenerateOptions, HookedTransformer, StepOptions};
/// let model = HookedTransformer::toy()?;
/// let pairs = [(" Mary", " John"), (" Anna", " Peter")];
/// let texts = |name: &str| format!("When{name}");
/// let (positive, negative): (Vec<String>, Vec<String>) = pairs.iter().map(|(a, b)| (texts(a), texts(b))).unzip();
/// let vector = SteeringVector::from_pairs(&model, hook::resid_pre(2), positive, negative, SteeringOptions::new())?;
/// // In a run, or in each step of a generation: at every position but the first.
/// let options = GenerateOptions::new().do_sample(false).max_new_tokens(3);
/// let steered = model.generate_with("When Mary", &options, StepOptions::new().hooks(vector.hooks(4.0, 1..)?))?;
/// println!("{}", steered.text(0)?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SteeringVector {
    point: HookPoint,
    direction: SharedTensor,
}

impl SteeringVector {
    /// A direction, `[d]`, at a point.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]; [`Error::WrongInput`] for a direction that is zero or not finite.
    pub fn new(point: HookPoint, direction: &Tensor) -> Result<Self> {
        if !direction.defined() || direction.dim() != 1 {
            let found = if direction.defined() { direction.size() } else { Vec::new() };
            return Err(Error::Shape { what: "the direction".into(), found, expected: "[d]".into() });
        }
        let length = direction.f_to_kind(Kind::Double)?.norm_over(&[0], false)?.f_double_value(&[])?;
        if length == 0.0 || !length.is_finite() {
            return Err(Error::wrong_input(format!(
                "the direction at `{point}` has length {length}: nothing would be steered"
            )));
        }
        Ok(SteeringVector { point, direction: direction.f_detach()?.into() })
    }

    /// The direction from the texts of `negative` to those of `positive`, which are pairs: the first with the first, and so on.
    ///
    /// The point is one whose activation has one vector for each token: a residual stream, what a sublayer adds to it, or the neurons of an
    /// MLP. Pairs that differ in one thing only give a direction of that thing.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`]; [`Error::WrongInput`] for lists of different lengths, a point with another shape, and texts that do
    /// not differ there.
    pub fn from_pairs(
        model: &HookedTransformer,
        point: impl HookName,
        positive: impl Into<Input>,
        negative: impl Into<Input>,
        options: SteeringOptions,
    ) -> Result<Self> {
        let point = point.resolve(model.config())?;
        check(model, point)?;
        let vectors = |input: Input| -> Result<Tensor> {
            let run = RunOptions::new().cache(point).pos(options.positions.clone()).return_type(ReturnType::None);
            let cache = model.run(input, run)?.cache;
            let values = cache.get(point)?.f_to_kind(Kind::Double)?; // [text, pos, d]
            Ok(values.f_mean_dim([1i64].as_slice(), false, None)?)
        };
        let (positive, negative) = (vectors(positive.into())?, vectors(negative.into())?); // [text, d]
        if positive.size() != negative.size() {
            return Err(Error::wrong_input(format!(
                "pairs need as many positive texts as negative ones, not {} and {}",
                positive.size()[0],
                negative.size()[0]
            )));
        }
        let differences = positive.f_sub(&negative)?; // [pair, d]
        let mean = differences.f_mean_dim([0i64].as_slice(), false, None)?; // [d]
        let direction = match options.method {
            SteeringMethod::MeanDifference => mean,
            SteeringMethod::Pca => {
                let (_, _, components) = differences.f_svd(true, true)?; // [d, component]
                let first = components.f_select(1, 0)?;
                let along = first.f_dot(&mean)?.f_double_value(&[])?; // also settles the sign
                first.mul_number(along)?
            }
        };
        SteeringVector::new(point, &direction.f_to_kind(crate::tensor::precision::at_least_float(model.kind()))?)
    }

    /// The point.
    pub fn point(&self) -> HookPoint {
        self.point
    }

    /// The direction: `[d]`.
    pub fn direction(&self) -> Tensor {
        self.direction.shallow_clone()
    }

    /// A patch that adds the direction, times `scale`, wherever it is selected.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a scale that is not finite.
    pub fn patch(&self, scale: f64) -> Result<Patch> {
        if !scale.is_finite() {
            return Err(Error::option_value("scale", scale, "it must be a finite number"));
        }
        Ok(Patch::add(self.direction.mul_number(scale)?))
    }

    /// Hooks that add the direction, times `scale`, at some positions: of a run, or of a generation's prompt and continuation.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a scale that is not finite.
    pub fn hooks(&self, scale: f64, positions: impl Into<Positions>) -> Result<Hooks<'static>> {
        Ok(Hooks::new().patch(self.point, self.patch(scale)?.pos(positions)))
    }

    /// Hooks that take the direction out of the activation at some positions.
    pub fn ablation(&self, positions: impl Into<Positions>) -> Hooks<'static> {
        Hooks::new().patch(self.point, Patch::project_out(self.direction.shallow_clone()).pos(positions))
    }

    /// How far the activations of a run lie along the direction: the products with the unit vector, `[batch, pos]`, in fp32 or better.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`]; [`Error::Shape`] for activations of another width.
    pub fn projections(&self, cache: &ActivationCache) -> Result<Tensor> {
        let activation = widened(cache.get(self.point)?)?;
        let d = self.direction.size();
        if activation.size().last() != d.first() {
            let expected = format!("[…, {}], as the direction", d[0]);
            return Err(Error::Shape { what: format!("`{}`", self.point), found: activation.size(), expected });
        }
        let direction = self.direction.f_to_kind(activation.f_kind()?)?.f_to_device(activation.device())?;
        let unit = direction.f_div(&direction.norm_over(&[0], false)?)?;
        Ok(activation.f_matmul(&unit)?)
    }
}

/// That the activation of a point has one vector for each token.
fn check(model: &HookedTransformer, point: HookPoint) -> Result<()> {
    let extents = point.extents(model.config());
    match extents[..] {
        [Extent::Batch, Extent::Pos, Extent::DModel | Extent::DMlp] => Ok(()),
        _ => Err(Error::wrong_input(format!(
            "`{point}` has not one vector for each token: choose a residual stream, a sublayer's output or an MLP's neurons"
        ))),
    }
}
