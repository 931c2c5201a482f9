//! What a circuit does: a run in which every receiver reads the circuit's edges as they are, and the others ablated.

use std::cell::RefCell;
use std::ops::Range;

use tch::Tensor;

use super::circuit::Circuit;
use super::cross::CrossHeads;
use super::node::{CircuitEdge, CircuitNode, HeadInput};
use super::part::{is_last, PartKind, PartNodes};
use super::reaching::{in_stream, read_at};
use super::senders::{for_readers, head_writer, of_heads};
use super::task::CircuitTask;
use crate::hook::{self, HookPoint};
use crate::run::Hooks;
use crate::tensor::precision::widened;
use crate::{Error, Result, RunOptions};

/// What the nodes have written so far in a run.
#[derive(Default)]
struct Written {
    /// By how much what each sender would write ablated differs from what it wrote: groups of `[sender, batch, pos, d_model]`, in order.
    differences: Vec<Tensor>,
    /// What each part wrote, with the bias, where norms change the stream, or come after its heads: `[batch, pos, d_model]`.
    outputs: Vec<Option<Tensor>>,
    /// The stream before the first layer, where norms change it: `[batch, pos, d_model]`.
    start: Option<Tensor>,
    /// The stream that cross-attention reads: `[batch, pos, d_model]`.
    cross_input: Option<Tensor>,
}

/// What receivers read: `[receiver, batch, pos, d_model]`.
enum Carried {
    /// The stream changed by this.
    Update(Tensor),
    /// This instead of the stream.
    Stream(Tensor),
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
        // Whether receivers read something else in the circuit, and a node that is read in it depends on that.
        let changes = |mut receivers: Range<usize>| {
            let matters = |receiver: &usize| {
                let readers = graph.readers_of(*receiver);
                all || readers.is_empty() || readers.into_iter().any(|reader| circuit.is_read(reader))
            };
            receivers.any(|receiver| circuit.ablates(receiver) && matters(&receiver))
        };
        let carried = move |receivers: Range<usize>| self.carried(circuit, kept.as_ref(), &written.borrow(), receivers);
        let change = move |x: &Tensor, receivers: Range<usize>| -> Result<Tensor> {
            let read = |read: &Tensor| -> Result<Tensor> {
                let read = match x.dim() {
                    4 => for_readers(model, read)?, // [batch, pos, head, d_model]
                    _ => read.f_squeeze_dim(0)?,
                };
                Ok(read.f_to_kind(x.f_kind()?)?)
            };
            match carried(receivers)? {
                Carried::Update(update) => Ok(x.f_add(&read(&update)?)?),
                Carried::Stream(stream) => read(&stream),
            }
        };
        let write = move |first: usize, x: &Tensor, output: Option<Tensor>| -> Result<()> {
            let ablated = self.ablated_writes.f_narrow(0, first as i64, x.size()[0])?;
            let mut written = written.borrow_mut();
            written.differences.push(ablated.f_sub(x)?);
            if first > 0 {
                written.outputs.push(output);
            }
            Ok(())
        };
        let mut hooks = Hooks::new()
            .observe(hook::embedding(model.config()), move |x, _| write(0, &widened(x)?.f_unsqueeze(0)?, None));
        if in_stream {
            hooks = hooks.observe(hook::resid_pre(0), move |x, _| -> Result<()> {
                written.borrow_mut().start = Some(widened(x)?);
                Ok(())
            });
        }
        for part in graph.parts() {
            let (layer, first) = (part.layer, part.first_receiver);
            match part.kind {
                PartKind::Attention => {
                    let points: [fn(usize) -> HookPoint; 3] = [hook::q_input, hook::k_input, hook::v_input];
                    for (input, point) in (0..part.n_receivers() / part.n).zip(points) {
                        let receivers = first + input * part.n..first + (input + 1) * part.n;
                        if changes(receivers.clone()) {
                            hooks = hooks.replace(point(layer), move |x, _| change(x, receivers.clone()));
                        }
                    }
                }
                PartKind::CrossAttention => {
                    let heads = CrossHeads::new(self, part);
                    let queries = first..first + part.n;
                    if changes(queries.clone()) {
                        if !in_stream {
                            hooks = hooks.observe(hook::resid_mid(layer), move |x, _| -> Result<()> {
                                written.borrow_mut().cross_input = Some(widened(x)?);
                                Ok(())
                            });
                        }
                        hooks = hooks.replace(hook::cross_q(layer), move |q, _| -> Result<Tensor> {
                            let stream = match carried(queries.clone())? {
                                Carried::Stream(stream) => stream,
                                Carried::Update(update) => {
                                    let input = written.borrow_mut().cross_input.take();
                                    let input = input.ok_or(Error::Internal("cross-attention reads no stream"))?;
                                    update.f_add(&input)?
                                }
                            };
                            heads.queries(&stream)?.f_to_kind(q.f_kind()?).map_err(Error::from)
                        });
                    }
                    for (input, point) in [(HeadInput::K, hook::cross_k(layer)), (HeadInput::V, hook::cross_v(layer))] {
                        let start = first + input as usize * part.n;
                        let receivers = start..start + part.n;
                        if changes(receivers.clone()) {
                            let encoder = graph.sender_index(CircuitNode::Encoder)?;
                            let ablated: Vec<f64> =
                                receivers.map(|receiver| f64::from(!circuit.has(encoder, receiver))).collect();
                            hooks = hooks.replace(point, move |x, _| heads.ablated(input, x, &ablated));
                        }
                    }
                }
                PartKind::Mlp | PartKind::LayerEmbedding => {
                    if changes(first..first + 1) {
                        hooks = hooks.replace(read_at(model, part), move |x, _| change(x, first..first + 1));
                    }
                }
            }
            if part.kind == PartKind::LayerEmbedding && changes(first + 1..first + 2) {
                hooks = hooks.replace(hook::ple_embed(layer), move |x, _| -> Result<Tensor> {
                    let ablated = self.ablated.layer_inputs.get(layer);
                    let ablated = ablated.ok_or(Error::Internal("a layer has no input of its own"))?;
                    Ok(ablated.f_expand_as(x)?.f_to_kind(x.f_kind()?)?)
                });
            }
            let normed = in_stream || part.norm_after_heads(model)?.is_some();
            hooks = hooks.observe(part.computed(), move |x, _| -> Result<()> {
                let results = match part.kind.has_heads() {
                    true => of_heads(model, part, x)?,
                    false => widened(x)?.f_unsqueeze(0)?,
                };
                let output = match normed {
                    true => Some(self.output_of(part, &results)?),
                    false => None,
                };
                write(part.first_sender, &results, output)
            });
        }
        let logits = graph.n_receivers() - 1;
        if changes(logits..logits + 1) {
            let last = hook::stream_after(model.config(), graph.n_layers() - 1);
            hooks = hooks.replace(last, move |x, _| change(x, logits..logits + 1));
        }
        Ok(hooks)
    }

    /// The sum of what the nodes of a part write, `[node, batch, pos, d_model]`, with the bias of heads: `[batch, pos, d_model]`.
    fn output_of(&self, part: &PartNodes, results: &Tensor) -> Result<Tensor> {
        if !part.kind.has_heads() {
            return Ok(results.f_squeeze_dim(0)?);
        }
        let sum = results.f_sum_dim_intlist([0i64].as_slice(), false, None)?;
        Ok(match &head_writer(self.model.transformer(), part)?.bias {
            Some(bias) => sum.f_add(&widened(bias)?)?,
            None => sum,
        })
    }

    /// What some receivers, which read the stream at one place, read in the circuit.
    fn carried(
        &self,
        circuit: &Circuit,
        kept: Option<&Tensor>,
        written: &Written,
        receivers: Range<usize>,
    ) -> Result<Carried> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let (senders, count) = (graph.senders_of(receivers.start).end, receivers.len());
        let ablated: Vec<f64> = receivers
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
        let adds_up = model.config().stream.keeps_what_is_written() && written.outputs.iter().all(Option::is_none);
        if adds_up && written.start.is_none() {
            return Ok(Carried::Update(change(0, senders)?));
        }
        let multiplied = |x: Tensor, factor: Option<Tensor>| match factor {
            Some(factor) => Ok::<_, Error>(x.f_mul(&factor.f_to_kind(x.f_kind()?)?)?),
            None => Ok(x),
        };
        // Each receiver reads a stream of its own, through norms of its own where these are of the stream itself.
        let mut stream = match &written.start {
            Some(start) => start.f_add(&change(0, 1)?)?,
            None => change(0, 1)?,
        };
        let parts = graph.parts();
        for (index, part) in parts.iter().enumerate().take_while(|(_, part)| part.first_sender < senders) {
            stream = multiplied(stream, part.factor_before(model)?)?;
            let change = change(part.first_sender, part.n)?;
            let output = written.outputs.get(index).and_then(Option::as_ref);
            stream = stream.f_add(&match (output, part.norm_after_heads(model)?) {
                (None, _) => change,
                // A norm after attention sees the heads of a layer together.
                (Some(output), Some(norm)) => {
                    let mixed = output.f_add(&change)?; // [receiver, batch, pos, d_model]
                    norm.norm.apply_wide(&mixed)?.f_sub(&norm.norm.apply_wide(output)?)?
                }
                (Some(output), None) => output.f_add(&change)?,
            })?;
            if let Some(norm) = part.norm_of_stream(model)? {
                stream = norm.norm.apply_wide(&stream)?;
            }
            stream = multiplied(stream, part.factor_after(model, is_last(parts, index))?)?;
        }
        Ok(match written.start {
            Some(_) => Carried::Stream(stream),
            None => Carried::Update(stream),
        })
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
