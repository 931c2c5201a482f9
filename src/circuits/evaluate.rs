//! What a circuit does: a run in which every receiver reads the circuit's edges as they are, and the others ablated.

use std::cell::RefCell;

use tch::Tensor;

use super::circuit::Circuit;
use super::node::{CircuitEdge, HeadInput};
use super::reaching::{in_stream, read_by_mlp};
use super::senders::{for_readers, of_heads};
use super::task::CircuitTask;
use crate::component::Sublayer;
use crate::hook::{self, HookPoint};
use crate::run::Hooks;
use crate::tensor::precision::widened;
use crate::{Error, Result, RunOptions};

/// What the nodes have written so far in a run.
#[derive(Default)]
struct Written {
    /// By how much what each sender would write ablated differs from what it wrote: groups of `[sender, batch, pos, d_model]`, in order.
    differences: Vec<Tensor>,
    /// What each layer's heads wrote together, with the bias, where a norm comes after: `[batch, pos, d_model]`.
    attention: Vec<Tensor>,
    /// What each layer's MLP wrote, where norms change the stream.
    mlps: Vec<Tensor>,
    /// The stream before the first layer, where norms change it: `[batch, pos, d_model]`.
    start: Option<Tensor>,
}

/// What receivers read: `[receiver, batch, pos, d_model]`.
enum Carried {
    /// The stream changed by this.
    Update(Tensor),
    /// This instead of the stream.
    Stream(Tensor),
}

/// What was kept of a layer.
fn of_layer(tensors: &[Tensor], layer: usize) -> Result<&Tensor> {
    tensors.get(layer).ok_or(Error::Internal("a layer that was not run is read"))
}

impl CircuitTask<'_, '_> {
    /// The metric where only the edges of a circuit are as they are: each node reads the sum of what its edges carry, and of what the ablated
    /// ones carry in their ablation. Biases and positions are no edges; they stay.
    ///
    /// What a node of the circuit writes is computed from what it reads in the circuit. One forward pass.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`](crate::HookedTransformer::run); [`Error::WrongInput`] where the circuit is of another graph.
    pub fn metric_of(&self, circuit: &Circuit) -> Result<f64> {
        if circuit.graph() != &self.graph {
            return Err(Error::wrong_input("the circuit is of a model of another shape than the task's"));
        }
        let written = RefCell::new(Written::default());
        let kept = self.kept_dimensions(circuit)?;
        let needs = self.metric.needs(self.model.config())?;
        let mut run = RunOptions::new()
            .hooks(self.circuit_hooks(circuit, &kept, &written, !needs.is_empty())?)
            .logits_at(self.metric.positions().clone());
        if !needs.is_empty() {
            run = run.cache(needs);
        }
        let output = self.model.run(&self.tokens, run)?;
        Ok(self.metric.scalar(output.logits()?, &output.cache)?.f_double_value(&[])?)
    }

    /// Which dimensions senders keep, as factors: `[sender, 1, 1, d_model]`; absent where all keep all.
    fn kept_dimensions(&self, circuit: &Circuit) -> Result<Option<Tensor>> {
        if circuit.partial().is_empty() {
            return Ok(None);
        }
        let writes = &self.ablated_writes;
        let kept = Tensor::f_ones([writes.size()[0], 1, 1, writes.size()[3]], (writes.f_kind()?, writes.device()))?;
        for (sender, dimensions) in circuit.partial() {
            let factors: Vec<f64> = dimensions.iter().map(|kept| f64::from(*kept)).collect();
            kept.f_select(0, *sender as i64)?.f_copy_(&Tensor::f_from_slice(&factors)?)?;
        }
        Ok(Some(kept))
    }

    /// Hooks that keep account of what is written, and change what is read: by nodes whose output is read in the circuit, or by all, where the
    /// metric looks at activations.
    fn circuit_hooks<'h>(
        &'h self,
        circuit: &'h Circuit,
        kept: &'h Option<Tensor>,
        written: &'h RefCell<Written>,
        all: bool,
    ) -> Result<Hooks<'h>> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let in_stream = in_stream(model);
        let ablates =
            |receivers: std::ops::Range<usize>| receivers.into_iter().any(|receiver| circuit.ablates(receiver));
        let change = move |x: &Tensor, first: usize, count: usize| -> Result<Tensor> {
            let carried = self.carried(circuit, kept.as_ref(), &written.borrow(), first, count)?;
            let read = |read: &Tensor| -> Result<Tensor> {
                let read = match x.dim() {
                    4 => for_readers(model, read)?, // [batch, pos, head, d_model]
                    _ => read.f_squeeze_dim(0)?,
                };
                Ok(read.f_to_kind(x.f_kind()?)?)
            };
            match carried {
                Carried::Update(update) => Ok(x.f_add(&read(&update)?)?),
                Carried::Stream(stream) => read(&stream),
            }
        };
        let write = move |first: usize, x: &Tensor| -> Result<()> {
            let ablated = self.ablated_writes.f_narrow(0, first as i64, x.size()[0])?;
            written.borrow_mut().differences.push(ablated.f_sub(x)?);
            Ok(())
        };
        let mut hooks =
            Hooks::new().observe(hook::embedding(model.config()), move |x, _| write(0, &widened(x)?.f_unsqueeze(0)?));
        if in_stream {
            hooks = hooks.observe(hook::resid_pre(0), move |x, _| -> Result<()> {
                written.borrow_mut().start = Some(widened(x)?);
                Ok(())
            });
        }
        for layer in 0..graph.n_layers() {
            let (sender, n_heads) = (graph.first_sender(layer), graph.n_heads(layer));
            if all || (sender..sender + n_heads).any(|head| circuit.is_read(head)) {
                let points: [fn(usize) -> HookPoint; 3] = [hook::q_input, hook::k_input, hook::v_input];
                for (input, point) in HeadInput::ALL.into_iter().zip(points) {
                    let first = graph.first_receiver(layer) + input as usize * n_heads;
                    if ablates(first..first + n_heads) {
                        hooks = hooks.replace(point(layer), move |x, _| change(x, first, n_heads));
                    }
                }
            }
            let normed = in_stream || self.model.norm_after_attn(layer)?.is_some();
            hooks = hooks.observe(hook::z(layer), move |z, _| -> Result<()> {
                let results = of_heads(model, layer, z)?;
                if normed {
                    let sum = self.attention_output(layer, &results)?;
                    written.borrow_mut().attention.push(sum);
                }
                write(sender, &results)
            });
            if graph.has_mlps {
                let (sender, receiver) = (graph.mlp_sender(layer), graph.mlp_receiver(layer));
                if (all || circuit.is_read(sender)) && circuit.ablates(receiver) {
                    hooks = hooks.replace(read_by_mlp(model, layer), move |x, _| change(x, receiver, 1));
                }
                hooks = hooks.observe(hook::mlp_out(layer), move |x, _| -> Result<()> {
                    let x = widened(x)?;
                    if in_stream {
                        written.borrow_mut().mlps.push(x.shallow_clone());
                    }
                    write(sender, &x.f_unsqueeze(0)?)
                });
            }
        }
        let logits = graph.n_receivers() - 1;
        if circuit.ablates(logits) {
            let last = hook::stream_after(model.config(), graph.n_layers() - 1);
            hooks = hooks.replace(last, move |x, _| change(x, logits, 1));
        }
        Ok(hooks)
    }

    /// The sum of what heads write, `[head, batch, pos, d_model]`, with the bias: `[batch, pos, d_model]`.
    fn attention_output(&self, layer: usize, results: &Tensor) -> Result<Tensor> {
        let sum = results.f_sum_dim_intlist([0i64].as_slice(), false, None)?;
        Ok(match &self.model.head_writer(layer)?.bias {
            Some(bias) => sum.f_add(&widened(bias)?)?,
            None => sum,
        })
    }

    /// What some receivers read in the circuit.
    fn carried(
        &self,
        circuit: &Circuit,
        kept: Option<&Tensor>,
        written: &Written,
        first: usize,
        count: usize,
    ) -> Result<Carried> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let senders = graph.senders_before(first);
        let ablated: Vec<f64> = (first..first + count)
            .flat_map(|receiver| (0..senders).map(move |sender| f64::from(!circuit.has(sender, receiver))))
            .collect();
        let differences = Tensor::f_cat(&written.differences, 0)?.f_narrow(0, 0, senders as i64)?;
        let shape = differences.size(); // [sender, batch, pos, d_model]
        let mask = Tensor::f_from_slice(&ablated)?
            .f_view([count as i64, senders as i64])?
            .f_to_kind(differences.f_kind()?)?
            .f_to_device(differences.device())?;
        // Dimensions that a sender keeps are ablated with an edge, and the others always.
        let (differences, always) = match kept {
            None => (differences, None),
            Some(kept) => {
                let of_edges = differences.f_mul(&kept.f_narrow(0, 0, senders as i64)?)?;
                let always = differences.f_sub(&of_edges)?;
                (of_edges, Some(always))
            }
        };
        let flat = differences.f_flatten(1, -1)?;
        // What changes with these senders: [receiver, batch, pos, d_model].
        let change = |start: usize, len: usize| -> Result<Tensor> {
            let (start, len) = (start as i64, len as i64);
            let sum = mask.f_narrow(1, start, len)?.f_matmul(&flat.f_narrow(0, start, len)?)?;
            let sum = sum.f_view([count as i64, shape[1], shape[2], shape[3]])?;
            match &always {
                None => Ok(sum),
                Some(always) => {
                    let always = always.f_narrow(0, start, len)?.f_sum_dim_intlist([0i64].as_slice(), true, None)?;
                    Ok(sum.f_add(&always)?)
                }
            }
        };
        let has_mlp = |layer: usize| graph.has_mlps && graph.mlp_sender(layer) < senders;
        let layers = (0..graph.n_layers()).take_while(|layer| graph.first_sender(*layer) < senders);
        if let Some(start) = &written.start {
            // Each receiver reads a stream of its own, through norms of its own.
            let mut stream = start.f_add(&change(0, 1)?)?;
            let normed =
                |stream: Tensor, layer: usize, sublayer: Sublayer| match model.norm_of_stream(layer, sublayer)? {
                    Some(norm) => norm.norm.apply_wide(&stream),
                    None => Ok(stream),
                };
            for layer in layers {
                let change_of_heads = change(graph.first_sender(layer), graph.n_heads(layer))?;
                stream = stream.f_add(of_layer(&written.attention, layer)?)?.f_add(&change_of_heads)?;
                stream = normed(stream, layer, Sublayer::Attention)?;
                if has_mlp(layer) {
                    let change_of_mlp = change(graph.mlp_sender(layer), 1)?;
                    stream = stream.f_add(of_layer(&written.mlps, layer)?)?.f_add(&change_of_mlp)?;
                    stream = normed(stream, layer, Sublayer::Mlp)?;
                }
            }
            return Ok(Carried::Stream(stream));
        }
        if written.attention.is_empty() {
            return Ok(Carried::Update(change(0, senders)?));
        }
        // A norm after attention sees the heads of a layer together.
        let mut update = change(0, 1)?;
        for layer in layers {
            let of_heads = change(graph.first_sender(layer), graph.n_heads(layer))?;
            update = update.f_add(&match model.norm_after_attn(layer)? {
                Some(norm) => {
                    let output = of_layer(&written.attention, layer)?;
                    let mixed = output.f_add(&of_heads)?; // [receiver, batch, pos, d_model]
                    norm.norm.apply_wide(&mixed)?.f_sub(&norm.norm.apply_wide(output)?)?
                }
                None => of_heads,
            })?;
            if has_mlp(layer) {
                update = update.f_add(&change(graph.mlp_sender(layer), 1)?)?;
            }
        }
        Ok(Carried::Update(update))
    }

    /// How much of what the model does a circuit does: `(metric of the circuit − metric of nothing) / (metric of the model − metric of
    /// nothing)`, where nothing is the circuit without edges. 1 is all; it may be more.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::metric_of`]; [`Error::WrongInput`] where the ablation does not change the metric.
    pub fn faithfulness(&self, circuit: &Circuit) -> Result<f64> {
        self.share(self.metric_of(circuit)?)
    }

    /// A metric on the scale from nothing to the model.
    pub(super) fn share(&self, metric: f64) -> Result<f64> {
        let (clean, ablated) = (self.clean_metric, self.ablated_metric()?);
        // Their difference would be rounding.
        if (clean - ablated).abs() <= 1e-6 * clean.abs().max(ablated.abs()) {
            return Err(Error::wrong_input(format!(
                "the metric is {clean}, whether edges are ablated or not, so no circuit is more faithful than another"
            )));
        }
        Ok((metric - ablated) / (clean - ablated))
    }

    /// How little the rest of the model does without the circuit: `1 − faithfulness` of the complement (Marks et al. 2024). 1 means that nothing
    /// is missing from the circuit.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::faithfulness`] and [`Circuit::complement`].
    pub fn completeness(&self, circuit: &Circuit) -> Result<f64> {
        Ok(1.0 - self.faithfulness(&circuit.complement()?)?)
    }

    /// By how much circuit and model differ once the same edges are ablated in both: `|F(C ∖ K) − F(M ∖ K)|` (Wang et al. 2022). Near 0 for
    /// every set of edges, the circuit is complete.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::faithfulness`]; [`Error::NoCircuitPart`] for an edge that the model does not have.
    pub fn incompleteness(&self, circuit: &Circuit, ablated: &[CircuitEdge]) -> Result<f64> {
        let of = |circuit: &Circuit| self.faithfulness(&circuit.without(ablated.iter().copied())?);
        let (circuit, model) = (of(circuit)?, of(&Circuit::full(self.graph.clone()))?);
        Ok((circuit - model).abs())
    }

    /// By how much the faithfulness of a circuit falls without each of its edges, the largest fall first. An edge without a fall is superfluous.
    /// One forward pass for each edge.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::faithfulness`].
    pub fn minimality(&self, circuit: &Circuit) -> Result<Vec<(CircuitEdge, f64)>> {
        let whole = self.faithfulness(circuit)?;
        let fall = |edge: CircuitEdge| Ok((edge, whole - self.faithfulness(&circuit.without([edge])?)?));
        let mut falls = circuit.edges().map(fall).collect::<Result<Vec<_>>>()?;
        falls.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(falls)
    }
}
