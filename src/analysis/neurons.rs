//! `get_neuron_results` and `stack_neuron_results`: what each neuron wrote.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::options::Neurons;
use super::project::Directions;
use super::stack::ResidualStack;
use super::window::Window;
use crate::cache::ActivationCache;
use crate::component::{Component, Reach};
use crate::hook;
use crate::model::block::MlpOrExperts;
use crate::model::moe::MixtureOfExperts;
use crate::tensor::precision::widened;
use crate::tensor::routed::{rows_at, weighted};
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// Neurons that write through the same matrix: an MLP's, or an expert's.
pub(crate) struct Group {
    /// What each neuron was, by the router's weight in a mixture: `[batch, pos, neuron]`.
    post: Tensor,
    /// `[d_model, neuron]`
    weight: Tensor,
}

impl ActivationCache {
    /// What each neuron of a layer wrote: `[batch, pos, neuron, d_model]`, `post W_out`.
    ///
    /// Through the norm after the MLP where the model has one, so that `Σ neurons + bias` is `mlp_out`. With
    /// [`Neurons::project`] onto `[d_model]` it is `[batch, pos, neuron]`, onto `[d_model, k]` `[batch, pos, neuron, k]`. The target,
    /// `apply_ln` and `incl_remainder` of the options play no part.
    ///
    /// ```
    /// # use tch_lens::{analysis::Neurons, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John")?;
    /// let some = cache.get_neuron_results(-1, Neurons::new().neurons([7, 100]).pos(-1))?;
    /// assert_eq!(some.size(), [1, 2, 128]); // [batch, neuron, d_model]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] where the run did not keep `post`; [`Error::Invalid`] where the model has no MLPs.
    pub fn get_neuron_results(&self, layer: i64, options: Neurons) -> Result<Tensor> {
        let layer = self.model().config().layer(layer)?;
        let Neurons { window, neurons, project, .. } = options;
        let window = window.of(self)?;
        let rows = match &project {
            None => self.neuron_rows(layer, &window, &neurons)?,
            Some(directions) => {
                let onto = Directions::plain(self.directions(directions)?);
                self.projected_neurons(layer, &window, &neurons, &onto)?
            }
        }; // [neuron, batch, pos, d_model or k]
        let single = project.is_some_and(|directions| directions.dim() == 1);
        let rows = if single { rows.f_squeeze_dim(-1)? } else { rows };
        let (batch, pos) = window.axes();
        let rows = window.drop_axes(&rows)?;
        Ok(rows.f_movedim_int(0, i64::from(batch) + i64::from(pos))?)
    }

    /// What each neuron wrote to the stream before the target: `[component, batch, pos, d_model]`, rows `L0N0`, `L0N1`, …
    /// (`L0E2N7` in a mixture of experts, weighted by the router).
    ///
    /// `Σ rows + bias` is `mlp_out`, for every model. With [`Neurons::incl_remainder`], the last row, `remainder`, is the rest of the
    /// stream. A stack of all neurons is large, `n_layers · d_mlp · batch · pos · d_model`: ask for some, for one position, or
    /// for a projection ([`Neurons::project`], [`logit_attrs`](ActivationCache::logit_attrs)), which never forms it.
    ///
    /// ```
    /// # use tch_lens::{analysis::Neurons, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let some = cache.stack_neuron_results(Neurons::new().neurons((0, 512, 128)).pos(-1))?;
    /// assert_eq!(some.labels()[..4], ["L0N0", "L0N128", "L0N256", "L0N384"]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] naming what the run did not keep; [`Error::Invalid`] where the model has no MLPs.
    pub fn stack_neuron_results(&self, options: Neurons) -> Result<ResidualStack> {
        let Neurons { target, apply_ln, window, neurons, incl_remainder, project } = options;
        let window = window.of(self)?;
        let reach = target.reach(self.model().config())?;
        if self.model().config().attn_only() {
            return Err(Error::invalid(NO_NEURONS));
        }
        let rows = NeuronRows { neurons, incl_remainder };
        self.stack_rows(&rows, &reach, &window, apply_ln, project)
    }

    /// What each neuron of a layer wrote: `[neuron, batch, pos, d_model]`.
    pub(crate) fn neuron_rows(&self, layer: usize, window: &Window, neurons: &Slice) -> Result<Tensor> {
        let after = FrozenNorm::after_mlp(layer, self, window)?;
        let groups = self.neuron_groups(layer, window, neurons)?;
        let rows = groups.iter().map(|group| {
            let post = group.post.f_permute([2, 0, 1])?.f_unsqueeze(-1)?; // [neuron, batch, pos, 1]
            let w = group.weight.f_tr()?.f_to_kind(post.f_kind()?)?; // [neuron, d_model]
            after.apply(&post.f_mul(&w.f_unsqueeze(1)?.f_unsqueeze(1)?)?)
        });
        Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// [`ActivationCache::neuron_rows`], projected: `[neuron, batch, pos, k]`.
    pub(crate) fn projected_neurons(
        &self,
        layer: usize,
        window: &Window,
        neurons: &Slice,
        onto: &Directions,
    ) -> Result<Tensor> {
        let after = FrozenNorm::after_mlp(layer, self, window)?;
        let groups = self.neuron_groups(layer, window, neurons)?;
        let rows = groups.iter().map(|group| onto.neurons(&group.post, &group.weight, &after));
        Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The neurons' components before the target.
    pub(crate) fn neuron_components(&self, reach: &Reach, neurons: &Slice) -> Result<Vec<Component>> {
        let config = self.model().config();
        let chosen = neurons.indices(config.d_mlp() as i64, "neuron")?;
        let mut components = Vec::with_capacity(reach.mlp_layers * chosen.len());
        for layer in 0..reach.mlp_layers {
            match config.experts() {
                None => {
                    components.extend(chosen.iter().map(|neuron| Component::Neuron { layer, neuron: *neuron as usize }))
                }
                Some(moe) => components.extend((0..moe.num_experts).flat_map(|expert| {
                    chosen.iter().map(move |neuron| Component::ExpertNeuron { layer, expert, neuron: *neuron as usize })
                })),
            }
        }
        Ok(components)
    }

    fn neuron_groups(&self, layer: usize, window: &Window, neurons: &Slice) -> Result<Vec<Group>> {
        let neurons = neurons.keeping_axis();
        match &self.model().weights().blocks[layer].mlp {
            None => Err(Error::invalid(NO_NEURONS)),
            Some(MlpOrExperts::Mlp(mlp)) => {
                let post = window.of(self, hook::post(layer))?; // [batch, pos, neuron]
                Ok(vec![Group {
                    post: neurons.apply(&post, 2, "neuron")?,
                    weight: neurons.apply(&mlp.w_out.weight, 1, "neuron")?,
                }])
            }
            Some(MlpOrExperts::Experts(mixture)) => {
                let chosen = self.chosen(layer, mixture, window)?; // [batch, pos, chosen]
                let mut groups = Vec::with_capacity(mixture.experts.len());
                for (expert, weights) in mixture.experts.iter().enumerate() {
                    let post = self.expert_post(layer, expert, &chosen, window)?; // [batch, pos, neuron]
                    groups.push(Group {
                        post: neurons.apply(&post, 2, "neuron")?,
                        weight: neurons.apply(&weights.w_out.weight, 1, "neuron")?,
                    });
                }
                Ok(groups)
            }
        }
    }

    /// The chosen experts and what the router gives them, `[batch, pos, chosen]` each.
    fn chosen(&self, layer: usize, mixture: &MixtureOfExperts, window: &Window) -> Result<Chosen> {
        let weights = window.of(self, hook::expert_weights(layer))?; // [batch, pos, expert]
        let indices = window.select(self, hook::expert_indices(layer))?;
        Ok(Chosen { weights: mixture.chosen(&weights, &indices)?, indices })
    }

    /// What the router gives each expert, zero where it was not chosen: `[batch, pos, expert]`.
    pub(crate) fn routed(&self, layer: usize, mixture: &MixtureOfExperts, window: &Window) -> Result<Tensor> {
        let Chosen { weights, indices } = self.chosen(layer, mixture, window)?;
        let mut size = indices.size();
        size[2] = mixture.experts.len() as i64;
        let zeros = Tensor::f_zeros(&size, (weights.f_kind()?, weights.device()))?;
        Ok(zeros.f_scatter_add(-1, &indices, &weights)?)
    }

    /// An expert's neurons by the router's weight, zero for tokens that it did not get: `[batch, pos, neuron]`.
    fn expert_post(&self, layer: usize, expert: usize, chosen: &Chosen, window: &Window) -> Result<Tensor> {
        let rows = self.get(hook::expert_post(layer, expert))?; // [hit, neuron]
        let point = hook::expert_indices(layer);
        let indices = match self.has_batch_dim() {
            true => self.get(point)?.shallow_clone(),
            false => self.get(point)?.f_unsqueeze(0)?,
        };
        let rows = rows_at(rows, &indices, expert, window.rows(), &window.places(self, point)?)?;
        weighted(&widened(&rows)?, &chosen.weights, &chosen.indices, expert)
    }
}

/// The experts that each token goes to.
struct Chosen {
    weights: Tensor,
    indices: Tensor,
}

const NO_NEURONS: &str = "this model has no MLPs, and so no neurons";

/// The rows of [`ActivationCache::stack_neuron_results`].
pub(crate) struct NeuronRows {
    pub(crate) neurons: Slice,
    pub(crate) incl_remainder: bool,
}
