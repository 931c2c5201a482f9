//! [`BackwardRules`]: rules that change what a backward pass computes, and no value of the forward pass.

/// Rules that change what a backward pass computes. The values of the forward pass stay the same.
///
/// Each rule puts a linear function with the same value in place of a part of the model: factors of it are constants for gradients. The
/// gradient of the changed model is then a coefficient by which a change is propagated.
///
/// | rule | part of the model | becomes, with `[…]` a constant |
/// | --- | --- | --- |
/// | [`frozen_norms`](BackwardRules::frozen_norms) | a norm | `(x − mean) / [scale] · w + b` |
/// | [`frozen_patterns`](BackwardRules::frozen_patterns) | attention | `[pattern] · v` |
/// | [`identity_activations`](BackwardRules::identity_activations) | an activation function | `x · [f(x) / x]` |
/// | [`half_products`](BackwardRules::half_products) | the product of gates and linear part in a gated MLP | `½ a · [b] + ½ [a] · b` |
/// | [`frozen_routers`](BackwardRules::frozen_routers) | a router's weights | `[weights]` |
///
/// [`relp`](BackwardRules::relp) has all of them: relevance patching of Rezaei Jafari et al. 2025 (arXiv 2508.21258), whose LayerNorm
/// rule is `frozen_norms` (also of root-mean-square norms), and whose attention rule is `frozen_patterns`. Routers are not treated there;
/// here they are constants, as patterns are.
///
/// ```
/// use tch_lens::{hook, BackwardRules, HookedTransformer, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let prompt = "When Mary and John went to the shop, John gave a bag to";
/// let run = || RunOptions::new().cache(hook::resid_pre(0));
/// let logit = |output: &tch_lens::RunOutput| Ok(output.logits()?.select(1, -1).select(1, 5).sum(None));
/// let plain = model.run_with_grad(prompt, run(), logit)?;
/// let rules = model.run_with_grad(prompt, run().backward_rules(BackwardRules::relp()), logit)?;
/// assert_eq!(plain.value, rules.value);
/// assert_ne!(plain.gradients["blocks.0.hook_resid_pre"], rules.gradients["blocks.0.hook_resid_pre"]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackwardRules {
    pub(crate) frozen_norms: bool,
    pub(crate) frozen_patterns: bool,
    pub(crate) identity_activations: bool,
    pub(crate) half_products: bool,
    pub(crate) frozen_routers: bool,
}

impl BackwardRules {
    /// No rule: the gradient itself.
    pub fn new() -> Self {
        BackwardRules::default()
    }

    /// The rules of relevance patching: all of them.
    pub fn relp() -> Self {
        BackwardRules {
            frozen_norms: true,
            frozen_patterns: true,
            identity_activations: true,
            half_products: true,
            frozen_routers: true,
        }
    }

    /// Whether the scales of all norms are constants.
    pub fn frozen_norms(mut self, frozen: bool) -> Self {
        self.frozen_norms = frozen;
        self
    }

    /// Whether attention patterns are constants. Queries and keys then have zero gradients.
    pub fn frozen_patterns(mut self, frozen: bool) -> Self {
        self.frozen_patterns = frozen;
        self
    }

    /// Whether an activation function is a multiplication by the constant `f(x) / x`.
    pub fn identity_activations(mut self, identity: bool) -> Self {
        self.identity_activations = identity;
        self
    }

    /// Whether each factor of a gated MLP's product gets half of its gradient.
    pub fn half_products(mut self, half: bool) -> Self {
        self.half_products = half;
        self
    }

    /// Whether the weights of a mixture's router are constants.
    pub fn frozen_routers(mut self, frozen: bool) -> Self {
        self.frozen_routers = frozen;
        self
    }
}
