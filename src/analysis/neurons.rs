//! `get_neuron_results` and `stack_neuron_results`: what each neuron wrote.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::options::{NeuronOptions, NeuronResultOptions};
use super::recipe::{Recipe, StackOptions};
use super::row_form::{Directions, RowForm};
use super::stack::ResidualStack;
use super::window::View;
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::config::SharedExpert;
use crate::layer::Layer;
use crate::tensor::precision::widened;
use crate::tensor::routed::{rows_at, weighted};
use crate::tensor::slice::Slice;
use crate::weights::NeuronWriter;
use crate::{hook, Error, Result};

impl ActivationCache {
    /// What each neuron of a layer wrote: `[batch, pos, neuron, d_model]`, `post W_out`.
    ///
    /// Through the norm after the MLP where the model has one, so that `Σ neurons + bias` is `mlp_out`. With
    /// [`NeuronResultOptions::project`] onto `[d_model]` it is `[batch, pos, neuron]`, onto `[d_model, k]` `[batch, pos, neuron, k]`.
    ///
    /// ```
    /// # use tch_lens::{analysis::NeuronResultOptions, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John")?;
    /// let some = cache.get_neuron_results(-1, NeuronResultOptions::new().neurons([7, 100]).pos(-1))?;
    /// assert_eq!(some.size(), [1, 2, 128]); // [batch, neuron, d_model]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::NoEntry`] and [`Error::NoPosition`] where the run did not keep `post`; [`Error::Shape`] for
    /// directions of another width; [`Error::ModelHasNo`] where the model has no MLPs; those of the slices.
    pub fn get_neuron_results(&self, layer: impl Into<Layer>, options: NeuronResultOptions) -> Result<Tensor> {
        let layer = layer.into().resolve(self.model().config().n_layers)?;
        let NeuronResultOptions { window, neurons, project } = options;
        let window = window.of(self)?;
        let view = View::new(self, &window);
        let rows = match &project {
            None => view.neuron_rows(layer, &neurons, &RowForm::Whole)?,
            Some(directions) => {
                let onto = Directions::plain(&Directions::checked(directions, self.model())?);
                view.neuron_rows(layer, &neurons, &RowForm::Projected(&onto))?
            }
        }; // [neuron, batch, pos, last]
        let single = project.is_some_and(|directions| directions.dim() == 1);
        let rows = if single { rows.f_squeeze_dim(-1)? } else { rows };
        let (batch, pos) = window.axes();
        Ok(window.drop_axes(&rows)?.f_movedim_int(0, i64::from(batch) + i64::from(pos))?)
    }

    /// What each neuron wrote to the stream before the target: `[component, batch, pos, d_model]`, rows `L0N0`, `L0N1`, …
    /// (`L0E2N7` in a mixture of experts, weighted by the router, and `L0N7` of its shared expert).
    ///
    /// `Σ rows + bias` is `mlp_out`, for every model. With [`NeuronOptions::incl_remainder`], the last row, `remainder`, is the rest of
    /// the stream. A stack of all neurons is large, `n_layers · d_mlp · batch · pos · d_model`: ask for some, for one position, or
    /// for a projection ([`NeuronOptions::project`], [`logit_attrs`](ActivationCache::logit_attrs)), which never forms it.
    ///
    /// ```
    /// # use tch_lens::{analysis::NeuronOptions, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let some = cache.stack_neuron_results(NeuronOptions::new().neurons((0, 512, 128)).pos(-1))?;
    /// assert_eq!(some.labels()[..4], ["L0N0", "L0N128", "L0N256", "L0N384"]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] and [`Error::NoPosition`] naming what the run did not keep; [`Error::LayerOutOfRange`] of the target;
    /// [`Error::Shape`] for directions of another width; [`Error::ModelHasNo`] where the model has no MLPs; those of the slices.
    pub fn stack_neuron_results(&self, options: NeuronOptions) -> Result<ResidualStack> {
        let NeuronOptions { target, apply_ln, window, neurons, incl_remainder, project } = options;
        self.refuse_without_neurons()?;
        let recipe = Recipe::Neurons { neurons: neurons.keeping_axis(), incl_remainder };
        self.decompose(&recipe, StackOptions { target, apply_ln, window, project })
    }

    /// An error where the model has no neurons.
    pub(crate) fn refuse_without_neurons(&self) -> Result<()> {
        match self.model().config().attn_only() {
            true => Err(Error::model_has_no("neurons", "it has no MLPs")),
            false => Ok(()),
        }
    }
}

/// The experts that each token goes to: `[batch, pos, chosen]` each.
struct Chosen {
    weights: Tensor,
    indices: Tensor,
}

impl View<'_> {
    /// What each neuron of a layer wrote: `[neuron, batch, pos, last]`.
    pub(crate) fn neuron_rows(&self, layer: usize, neurons: &Slice, form: &RowForm) -> Result<Tensor> {
        let neurons = neurons.keeping_axis();
        let after = FrozenNorm::of_run(self.model().norm_after_mlp(layer)?, self)?;
        let after_parts = match self.model().norms_after_parts(layer)? {
            Some([experts, shared]) => {
                let before = |norm| FrozenNorm::of_run(Some(norm), self)?.followed_by(&after);
                Some([before(experts)?, before(shared)?])
            }
            None => None,
        };
        let (mut rows, mut chosen) = (Vec::new(), None);
        for writer in self.model().neuron_writers(layer)? {
            let post = match writer.expert {
                None => self.post(layer)?,
                Some(expert) => {
                    let chosen = match &chosen {
                        Some(chosen) => chosen,
                        None => chosen.insert(self.chosen(layer)?),
                    };
                    self.expert_post(layer, expert, chosen)?
                }
            }; // [batch, pos, neuron]
            let post = neurons.apply(&post, 2, "neuron")?;
            let after = match (&after_parts, writer.expert) {
                (Some([experts, _]), Some(_)) => experts,
                (Some([_, shared]), None) => shared,
                (None, _) => &after,
            };
            rows.push(form.neurons(&post, &neurons.apply(&writer.out.weight, 1, "neuron")?, after)?);
        }
        if rows.is_empty() {
            self.cache.refuse_without_neurons()?;
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }

    /// The neurons of a layer.
    pub(crate) fn neuron_components(&self, layer: usize, neurons: &Slice) -> Result<Vec<Component>> {
        let mut components = Vec::new();
        for writer in self.model().neuron_writers(layer)? {
            let chosen = neurons.indices(writer.out.weight.size()[1], "neuron")?; // [d_model, neuron]
            components.extend(chosen.into_iter().map(|neuron| match writer.expert {
                None => Component::Neuron { layer, neuron: neuron as usize },
                Some(expert) => Component::ExpertNeuron { layer, expert, neuron: neuron as usize },
            }));
        }
        Ok(components)
    }

    /// What a layer's MLP, or its experts by the router's weight, add whatever the neurons are: `[d_model]` or `[batch, pos, d_model]`.
    pub(crate) fn neuron_bias(&self, layer: usize) -> Result<Option<Tensor>> {
        let writers = self.model().neuron_writers(layer)?;
        let of_mixture = self.model().mixture_bias(layer)?.map(widened).transpose()?;
        if writers.iter().all(|writer| writer.out.bias.is_none()) {
            return Ok(of_mixture);
        }
        if let [NeuronWriter { expert: None, out }] = writers[..] {
            return out.bias.as_deref().map(widened).transpose();
        }
        let shared = writers.iter().find(|writer| writer.expert.is_none()).and_then(|it| it.out.bias.as_deref());
        let shared = shared.map(|bias| self.by_shared_gate(layer, widened(bias)?)).transpose()?;
        let shared = match (shared, of_mixture) {
            (Some(shared), Some(bias)) => Some(shared.f_add(&bias)?),
            (shared, bias) => shared.or(bias),
        };
        let biases = writers.iter().filter(|writer| writer.expert.is_some()).map(|writer| writer.out.bias.as_deref());
        if biases.clone().all(|bias| bias.is_none()) {
            return Ok(shared);
        }
        let routed = self.routed(layer)?; // [batch, pos, expert]
        let options = (routed.f_kind()?, routed.device());
        let each = biases.map(|bias| match bias {
            Some(bias) => Ok(bias.f_to_kind(options.0)?),
            None => Ok(Tensor::f_zeros([self.model().config().d_model as i64], options)?),
        });
        let each = Tensor::f_stack(&each.collect::<Result<Vec<_>>>()?, 0)?; // [expert, d_model]
        let routed = routed.f_matmul(&each)?;
        Ok(Some(match shared {
            Some(shared) => routed.f_add(&shared)?,
            None => routed,
        }))
    }

    /// The activations of each group of neurons of a layer, by the weights that their outputs have: `[batch, pos, neuron]`, zero for tokens
    /// that an expert did not get. In the order of [`neuron_writers`](crate::Transformer::neuron_writers).
    pub(crate) fn weighted_neurons(&self, layer: usize) -> Result<Vec<Tensor>> {
        let writers = self.model().neuron_writers(layer)?;
        let is_mixture = writers.iter().any(|writer| writer.expert.is_some());
        let chosen = is_mixture.then(|| self.chosen(layer)).transpose()?;
        let each = writers.iter().map(|writer| match (writer.expert, &chosen) {
            (Some(expert), Some(chosen)) => self.expert_post(layer, expert, chosen),
            _ => self.post(layer),
        });
        each.collect()
    }

    /// The neurons that every token has, by the gate of the shared expert where it has one: `[batch, pos, neuron]`.
    fn post(&self, layer: usize) -> Result<Tensor> {
        self.by_shared_gate(layer, self.get(hook::post(layer))?)
    }

    /// What every token has, by the gate of the shared expert where it has one.
    fn by_shared_gate(&self, layer: usize, x: Tensor) -> Result<Tensor> {
        let experts = self.model().config().experts_of(layer);
        match experts.and_then(|experts| experts.shared) {
            Some(SharedExpert { gated: true, .. }) => Ok(self.get(hook::shared_gate(layer))?.f_mul(&x)?),
            _ => Ok(x),
        }
    }

    /// The chosen experts and what the router gives them.
    fn chosen(&self, layer: usize) -> Result<Chosen> {
        let weights = self.get(hook::expert_weights(layer))?; // [batch, pos, expert]
        let indices = self.get_as_kept(hook::expert_indices(layer))?;
        Ok(Chosen { weights: self.model().chosen_weights(layer, &weights, &indices)?, indices })
    }

    /// What the router gives each expert, zero where it was not chosen: `[batch, pos, expert]`. An expert that a token goes to twice
    /// counts twice.
    fn routed(&self, layer: usize) -> Result<Tensor> {
        let Chosen { weights, indices } = self.chosen(layer)?;
        let zeros = self.get(hook::expert_weights(layer))?.f_zeros_like()?;
        Ok(zeros.f_scatter_add(-1, &indices, &weights)?)
    }

    /// An expert's neurons by the router's weight, zero for tokens that it did not get: `[batch, pos, neuron]`.
    fn expert_post(&self, layer: usize, expert: usize, chosen: &Chosen) -> Result<Tensor> {
        let rows = self.cache.get(hook::expert_post(layer, expert))?; // [hit, neuron]
        let point = hook::expert_indices(layer);
        let indices = match self.cache.has_batch_dim() {
            true => self.cache.get(point)?.shallow_clone(),
            false => self.cache.get(point)?.f_unsqueeze(0)?,
        };
        let rows = rows_at(rows, &indices, expert, self.window.rows(), &self.places(point)?)?;
        weighted(&widened(&rows)?, &chosen.weights, &chosen.indices, expert)
    }
}
