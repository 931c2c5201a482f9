//! [`Mlp`]: a block's neurons.

use tch::Tensor;

use super::linear::Linear;
use super::norm::{valued, Norm};
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::config::Activation;
use crate::hook;
use crate::run::{BackwardRules, Flow, Tap};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::unchecked::onednn::Epilogue;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// `act(x W_in + b_in) W_out + b_out`, or gated: `(act(x W_gate) · x W_in + b_in) W_out + b_out`
/// (Shazeer 2020, "GLU Variants").
#[derive(Clone, Debug)]
pub(crate) struct Mlp {
    /// `d_model` to `d_mlp`.
    pub(crate) w_in: Linear,
    /// `d_model` to `d_mlp`; only in a gated MLP.
    pub(crate) gate: Option<Linear>,
    /// What TransformerLens' gated MLP adds to the product of gates and linear part; no checkpoint has one.
    pub(crate) b_product: Option<SharedTensor>,
    /// SoLU's norm, or another between neurons and `w_out`.
    pub(crate) ln: Option<Norm>,
    /// `d_mlp` to `d_model`.
    pub(crate) w_out: Linear,
    pub(crate) act: Act,
    pub(crate) layer: usize,
}

/// The parts of an MLP's linear maps, with those of their biases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpParts {
    pub(crate) w_in: (Part, Part),
    pub(crate) gate: (Part, Part),
    pub(crate) w_out: (Part, Part),
}

impl MlpParts {
    /// A layer's MLP or one of its experts.
    pub(crate) const OWN: MlpParts =
        MlpParts { w_in: (Part::In, Part::InB), gate: (Part::Gate, Part::GateB), w_out: (Part::Out, Part::OutB) };
    /// A mixture's shared expert.
    pub(crate) const SHARED: MlpParts = MlpParts {
        w_in: (Part::SharedIn, Part::SharedInB),
        gate: (Part::SharedGate, Part::SharedGateB),
        w_out: (Part::SharedOut, Part::SharedOutB),
    };
}

module!(Mlp, parts => MlpParts, {
    w_in: parts.w_in,
    gate: parts.gate,
    b_product: Part::ProductB,
    ln: (Part::MlpLnW, Part::MlpLnB),
    w_out: parts.w_out,
    act: (),
} plain { layer });

/// An activation function, with xIELU's parameters where it is that.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    pub(crate) function: Activation,
    /// `(alpha_p, alpha_n, beta, eps)`, each of one entry.
    pub(crate) xielu: Option<[SharedTensor; 4]>,
}

module!(Act, () => (), {
    xielu: [Part::XieluPositive, Part::XieluNegative, Part::XieluBeta, Part::XieluEps],
} plain { function });

impl Mlp {
    /// `[batch, pos, d_model]` to `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, x: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let post = match &self.gate {
            None => self.activated(&self.w_in, x, tap)?,
            Some(gate) => {
                let gates = self.activated(gate, x, tap)?; // [batch, pos, d_mlp]
                let linear = tap.at(hook::pre_linear(layer), self.w_in.forward(x)?)?; // [batch, pos, d_mlp]
                let product = product(&gates, &linear, tap.plan.rules())?;
                match &self.b_product {
                    Some(b) => product.f_add(b)?,
                    None => product,
                }
            }
        };
        let post = match &self.ln {
            None => post,
            Some(ln) => {
                let mid = tap.at(hook::mid(layer), post)?; // [batch, pos, d_mlp]
                ln.forward(&mid, (hook::mlp_ln_scale(layer), hook::mlp_ln_normalized(layer)), tap)?.into_tensor()
            }
        };
        let post = tap.at(hook::post(layer), post)?; // [batch, pos, d_mlp]
        Ok(self.w_out.forward(&post)?)
    }

    /// The activation function of a product, through the hook point between them: `[batch, pos, d_mlp]`.
    fn activated(&self, linear: &Linear, x: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let point = hook::pre(self.layer);
        if let (false, Some(act)) = (tap.live(point), self.act.fused())
            && let Some(post) = linear.product(x, act)
        {
            return Ok(post);
        }
        let pre = Temporary::new(linear.forward(x)?).at(point, tap)?; // [batch, pos, d_mlp]
        Ok(self.act.apply_by(pre, tap.plan.rules())?)
    }
}

/// The product of gates and linear part, each of which gets half of its gradient where the rules say so.
pub(super) fn product(gates: &Tensor, linear: &Tensor, rules: BackwardRules) -> Result<Tensor> {
    let product = gates.f_mul(linear)?;
    match rules.half_products && product.requires_grad() {
        true => valued(&product, &product.mul_number(0.5)?),
        false => Ok(product),
    }
}

/// Close enough to zero that an activation function is linear there, and large enough to divide by.
const NEAR_ZERO: f64 = 1e-6;

impl Act {
    pub(crate) fn new(function: Activation) -> Self {
        Act { function, xielu: None }
    }

    /// The function as a matrix product can do it on the way.
    fn fused(&self) -> Option<Epilogue> {
        match self.function {
            Activation::Relu => Some(Epilogue::Relu),
            Activation::Gelu => Some(Epilogue::Gelu),
            Activation::GeluNew | Activation::GeluFast | Activation::GeluPytorchTanh => Some(Epilogue::GeluTanh),
            Activation::Silu => Some(Epilogue::Silu),
            Activation::Relu2 | Activation::QuickGelu | Activation::SoluLn | Activation::Tanh | Activation::Xielu => {
                None
            }
        }
    }

    /// [`Act::apply`], as a multiplication by the constant `f(x) / x` for gradients where the rules say so.
    pub(crate) fn apply_by(&self, x: Temporary, rules: BackwardRules) -> Result<Tensor> {
        if !rules.identity_activations || !x.requires_grad() {
            return self.apply(x);
        }
        let x = x.into_tensor();
        let value = self.apply(Temporary::shared(x.f_detach()?))?;
        // At zero, the quotient's limit.
        let wide = widened(&x.f_detach()?)?;
        let zero = wide.gt_number(0.0)?.f_logical_or(&wide.f_neg()?.gt_number(0.0)?)?.f_logical_not()?;
        let apart = wide.fill_where(&zero, NEAR_ZERO)?;
        let ratio = self.apply(Temporary::shared(apart.shallow_clone()))?.f_div(&apart)?.f_to_kind(x.f_kind()?)?;
        valued(&value, &x.f_mul(&ratio)?)
    }

    /// The function of `x`, in its memory where that may be.
    pub(crate) fn apply(&self, x: Temporary) -> Result<Tensor> {
        let (mut x, in_place) = x.into_parts();
        Ok(match self.function {
            Activation::Relu if in_place => x.f_relu_()?,
            Activation::Relu => x.f_relu()?,
            Activation::Relu2 => x.f_relu()?.f_square()?,
            Activation::Gelu if in_place => x.f_gelu_("none")?,
            Activation::Gelu => x.f_gelu("none")?,
            Activation::GeluNew | Activation::GeluFast | Activation::GeluPytorchTanh if in_place => {
                x.f_gelu_("tanh")?
            }
            Activation::GeluNew | Activation::GeluFast | Activation::GeluPytorchTanh => x.f_gelu("tanh")?,
            Activation::Silu if in_place => x.f_silu_()?,
            Activation::Silu => x.f_silu()?,
            Activation::QuickGelu => x.mul_number(1.702)?.f_sigmoid()?.f_mul(&x)?,
            Activation::SoluLn => x.f_softmax(-1, x.f_kind()?)?.f_mul(&x)?,
            Activation::Tanh => x.f_tanh()?,
            Activation::Xielu => self.xielu(&x)?,
        })
    }

    /// `α_p x² + β x` for positive `x`, `(e^min(x, ε) − 1 − x) α_n + β x` otherwise.
    fn xielu(&self, x: &Tensor) -> Result<Tensor> {
        let Some([alpha_p, alpha_n, beta, eps]) = &self.xielu else {
            return Err(crate::Error::Internal("xIELU lacks its parameters"));
        };
        let wide = widened(x)?;
        let linear = wide.f_mul(beta)?;
        let positive = wide.f_square()?.f_mul(alpha_p)?.f_add(&linear)?;
        let negative = wide.f_minimum(eps)?.f_expm1()?.f_sub(&wide)?.f_mul(alpha_n)?.f_add(&linear)?;
        Ok(positive.f_where_self(&wide.gt_number(0.0)?, &negative)?.f_to_kind(x.f_kind()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    /// The square of 300 is beyond fp16, a tenth of it is not.
    #[test]
    fn xielu_is_computed_in_fp32() {
        let parameters =
            [0.1, 0.5, 0.5, -1e-6].map(|x: f64| Tensor::from_slice(&[x as f32]).to_kind(Kind::Half).into());
        let act = Act { function: Activation::Xielu, xielu: Some(parameters) };
        let x = Tensor::from_slice(&[300.0f32, -2.0]).to_kind(Kind::Half);
        let found = Vec::<f32>::try_from(act.apply(Temporary::shared(x)).unwrap().to_kind(Kind::Float)).unwrap();
        assert!((found[0] - 9150.0).abs() < 20.0 && (found[1] + 1.0 - 1.0 / 2.0).abs() < 0.6, "{found:?}");
    }
}
