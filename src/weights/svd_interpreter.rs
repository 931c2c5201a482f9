//! [`SvdInterpreter`]: the singular vectors of weights, read as tokens.

use tch::Tensor;

use crate::component::Target;
use crate::model::Transformer;
use crate::tensor::factored::FactoredMatrix;
use crate::tensor::precision::widened;
use crate::{Error, Layer, Result};

/// The singular vectors of OV circuits and of the matrices of MLPs, read through the unembedding: TransformerLens' `SVDInterpreter`
/// (Millidge and Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are Highly Interpretable").
///
/// ```
/// use tch_lens::weights::{SvdInterpreter, SvdMatrix};
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let interpreter = SvdInterpreter::new(&model);
/// let vectors = interpreter.get_singular_vectors(SvdMatrix::ov(2, 1), 3)?; // [d_vocab_out, 1, vector]
/// let strongest = vectors.select(2, 0).select(1, 0).argmax(-1, false).int64_value(&[]);
/// println!("{}", model.to_string([strongest])?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// A singular vector is unique up to its sign.
#[derive(Clone, Debug)]
pub struct SvdInterpreter {
    model: Transformer,
}

/// A matrix whose rows lie in the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SvdMatrix {
    /// `W_V W_O` of a head: `[d_model, d_model]`.
    Ov {
        /// The layer.
        layer: Layer,
        /// The query head.
        head: usize,
    },
    /// `W_in` of an MLP, transposed, with the gain of the norm before it: `[d_mlp, d_model]`.
    WIn(Layer),
    /// `W_out` of an MLP: `[d_mlp, d_model]`.
    WOut(Layer),
}

impl SvdMatrix {
    /// `W_V W_O` of a head.
    pub fn ov(layer: impl Into<Layer>, head: usize) -> Self {
        SvdMatrix::Ov { layer: layer.into(), head }
    }

    /// `W_in` of an MLP.
    pub fn w_in(layer: impl Into<Layer>) -> Self {
        SvdMatrix::WIn(layer.into())
    }

    /// `W_out` of an MLP.
    pub fn w_out(layer: impl Into<Layer>) -> Self {
        SvdMatrix::WOut(layer.into())
    }
}

impl SvdInterpreter {
    /// Of a model's weights.
    pub fn new(model: &Transformer) -> Self {
        SvdInterpreter { model: model.clone() }
    }

    /// The logits of the first `num_vectors` right singular vectors: `[d_vocab_out, 1, vector]`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`] for a head that there is not, [`Error::ModelHasNo`] for a model without such
    /// MLPs, [`Error::Setting`] for more vectors than the matrix has.
    pub fn get_singular_vectors(&self, of: SvdMatrix, num_vectors: usize) -> Result<Tensor> {
        let (values, rows) = self.decomposed(of)?;
        let most = values.size()[0];
        let num = i64::try_from(num_vectors).unwrap_or(i64::MAX);
        if num < 1 || num > most {
            let rule = format!("the matrix has {most} singular vectors, so it must be from 1 to {most}");
            return Err(Error::option_value("num_vectors", num_vectors, rule));
        }
        let logits = rows.f_narrow(0, 0, num)?.f_matmul(&widened(&self.model.w_u()?)?)?; // [vector, d_vocab_out]
        Ok(logits.f_tr()?.f_unsqueeze(1)?)
    }

    /// The singular values, in descending order: `[vector]`.
    ///
    /// # Errors
    ///
    /// Those of [`get_singular_vectors`](SvdInterpreter::get_singular_vectors).
    pub fn singular_values(&self, of: SvdMatrix) -> Result<Tensor> {
        Ok(self.decomposed(of)?.0)
    }

    /// The singular values, `[vector]`, and the right singular vectors, as rows: `[vector, d_model]`.
    fn decomposed(&self, of: SvdMatrix) -> Result<(Tensor, Tensor)> {
        let model = &self.model;
        let n_layers = model.config().n_layers;
        let matrix = match of {
            SvdMatrix::Ov { layer, head } => {
                let n_heads = model.config().n_heads;
                if head >= n_heads {
                    let slice = format!("index {head}");
                    return Err(Error::SliceOutOfRange { slice, axis: "head", len: n_heads as i64 });
                }
                let layer = layer.resolve(n_layers)? as i64;
                let of_head = |weight: Tensor| widened(&weight.f_select(0, head as i64)?);
                let ov = FactoredMatrix::new(&of_head(model.w_v(layer)?)?, &of_head(model.w_o(layer)?)?)?;
                let svd = ov.svd()?;
                return Ok((svd.s.shallow_clone(), svd.vh()?));
            }
            SvdMatrix::WIn(layer) => {
                let layer = layer.resolve(n_layers)?;
                let w_in = widened(&model.w_in(layer as i64)?)?.f_tr()?; // [d_mlp, d_model]
                let norm = model.norm_before(Target::mlp(layer as i64))?;
                match norm.and_then(|norm| norm.norm.w.as_deref()) {
                    Some(gain) => w_in.f_mul(&widened(gain)?)?,
                    None => w_in,
                }
            }
            SvdMatrix::WOut(layer) => widened(&model.w_out(layer.resolve(n_layers)? as i64)?)?,
        };
        let (_, values, columns) = matrix.f_svd(true, true)?;
        Ok((values, columns.f_tr()?))
    }
}
