//! The weights as a [`VarStore`], for tch's optimisers.

use std::sync::PoisonError;

use tch::nn::VarStore;
use tch::Tensor;

use super::part::Role;
use super::Transformer;
use crate::Result;

/// Biases and gains, in [`Transformer::var_store`].
const VECTORS: usize = 1;

impl Transformer {
    /// The weights as the variables of a [`VarStore`], for the optimisers of [`tch::nn`]: the tensors and names of
    /// [`Transformer::parameters`], each of which records gradients from now on.
    ///
    /// The variables are the model's own memory. A step of an optimiser changes this model, its clones, and every model that shares
    /// its weights; no other thread may run them meanwhile. [`VarStore::freeze`] ends the recording.
    ///
    /// Biases and gains are in group 1, all else in group 0, so that an optimiser's settings can differ:
    /// [`set_weight_decay_group`](tch::nn::Optimizer::set_weight_decay_group).
    ///
    /// ```
    /// use tch::nn::{self, OptimizerConfig};
    /// use tch_lens::{Config, HookedTransformer, ReturnType, RunOptions};
    /// let model = HookedTransformer::init(Config::new(2, 16, 2, 50, 12), 0)?;
    /// let mut variables = model.var_store()?;
    /// let mut optimizer = nn::AdamW::default().build(&variables, 1e-2)?;
    /// optimizer.set_weight_decay_group(1, 0.0);
    /// let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    /// let before = model.loss(tokens)?;
    /// for _ in 0..10 {
    ///     let loss = model.run(tokens, RunOptions::new().return_type(ReturnType::Loss))?.loss.unwrap();
    ///     optimizer.backward_step(&loss);
    /// }
    /// variables.freeze();
    /// assert!(model.loss(tokens)? < 0.9 * before);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// libtorch's own, such as of a weight that another computation made and that is no leaf of its graph.
    pub fn var_store(&self) -> Result<VarStore> {
        let store = VarStore::new(self.device());
        let parameters: Vec<_> = self.distinct_parameters().collect();
        let root = store.root();
        for (index, (address, tensor)) in parameters.iter().enumerate() {
            let _ = tensor.f_set_requires_grad(true)?;
            let group = if matches!(address.part.role(), Role::Bias | Role::Gain) { VECTORS } else { 0 };
            // The store makes its variables itself: empty ones, whose place the weights take.
            let _ = root.set_group(group).f_zeros(&index.to_string(), &[0])?;
        }
        let mut variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
        variables.named_variables.clear();
        for (index, (address, tensor)) in parameters.iter().enumerate() {
            variables.named_variables.insert(address.to_string(), Tensor::shallow_clone(tensor));
            if let Some(variable) = variables.trainable_variables.get_mut(index) {
                variable.tensor = tensor.shallow_clone();
            }
        }
        drop(variables);
        Ok(store)
    }
}
