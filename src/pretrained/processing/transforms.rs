//! The steps of processing, each a change of weights that leaves every log-probability as it was.

use tch::Tensor;

use crate::model::attention::Attention;
use crate::model::linear::Linear;
use crate::model::norm::Norm;
use crate::tensor::factored::FactoredMatrix;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// So many rows of a matrix are read and changed before the next ones: few enough to stay in the processor's cache.
const ROWS: i64 = 1024;

/// Folds a norm's gain and bias into what reads it: `W' = w W`, `b' = b_ln W + b`.
///
/// A centred input has no mean, so the weights that read it lose theirs as well.
///
/// `readers` are all linear maps that read the norm.
pub(super) fn fold(norm: &mut Norm, readers: Vec<&mut Linear>) -> Result<()> {
    for linear in readers {
        let mut constants = Vec::new();
        for mut rows in linear.weight.f_split(ROWS, 0)? {
            // rows: [out, in], a view
            if let Some(b) = &norm.b {
                constants.push(rows.f_mv(b)?); // [out]
            }
            if let Some(w) = &norm.w {
                let _ = rows.f_mul_(w)?;
            }
            if norm.kind.centers() {
                let mean = rows.f_mean_dim([1i64].as_slice(), true, None)?;
                let _ = rows.f_sub_(&mean)?;
            }
        }
        if !constants.is_empty() {
            let constant = Tensor::f_cat(&constants, 0)?;
            add_to_bias(linear, constant)?;
        }
    }
    norm.kind = norm.kind.folded();
    (norm.w, norm.b) = (None, None);
    Ok(())
}

/// Folds the gain of what some linear maps read into these: `W' = w W`.
pub(super) fn fold_gain(gain: &mut Option<SharedTensor>, readers: Vec<&mut Linear>) -> Result<()> {
    if let Some(w) = gain.take() {
        for linear in readers {
            let _ = linear.weight.shallow_clone().f_mul_(&w)?; // [out, in]
        }
    }
    Ok(())
}

/// Adds a constant, `[out]`, to what a linear map gives.
fn add_to_bias(linear: &mut Linear, constant: Tensor) -> Result<()> {
    linear.bias = Some(match &linear.bias {
        Some(bias) => bias.f_add(&constant)?.into(),
        None => constant.into(),
    });
    Ok(())
}

/// Takes the mean off each row of a matrix: `[row, d_model]`.
pub(super) fn center_rows(rows: &Tensor) -> Result<()> {
    center(rows, 1)
}

/// Takes the mean over the outputs off what a linear map gives.
pub(super) fn center_outputs(linear: &Linear) -> Result<()> {
    center(&linear.weight, 0)?; // [out, in]
    linear.bias.as_ref().map_or(Ok(()), |bias| center(bias, 0))
}

/// Takes the mean over a dimension off a tensor, in place.
fn center(tensor: &Tensor, dim: i64) -> Result<()> {
    let mean = tensor.f_mean_dim([dim].as_slice(), true, None)?;
    let _ = tensor.shallow_clone().f_sub_(&mean)?;
    Ok(())
}

/// `b_O' = b_O + Σ_heads b_V W_O`, `b_V' = 0`.
pub(super) fn fold_value_biases(attn: &mut Attention) -> Result<()> {
    let Some(bias) = &attn.qkv.bias else { return Ok(()) };
    let entries = attn.n_kv_heads * attn.d_value;
    let mut b_v = bias.f_narrow(0, bias.size()[0] - entries, entries)?;
    let per_head = b_v
        .f_view([attn.n_kv_heads, attn.d_value])?
        .f_repeat_interleave_self_int(attn.n_heads / attn.n_kv_heads, 0, None)?
        .f_flatten(0, 1)?; // [head * d_value]
    let constant = attn.o.weight.f_mv(&per_head)?; // [d_model]
    add_to_bias(&mut attn.o, constant)?;
    let _ = b_v.f_zero_()?;
    Ok(())
}

/// `W_Q W_Kᵀ` (with biases) and `W_V W_O` keep their products; their factors become orthogonal with evenly
/// shared singular values, or, of `W_V` and `W_O`, with all of them on `W_O`'s side.
pub(super) fn refactor(attn: &mut Attention) -> Result<()> {
    let (n_heads, d_head) = (attn.n_heads, attn.d_head);
    let qkv = attn.qkv.weight.f_view([3, n_heads, d_head, -1])?; // [qkv, head, d_head, d_model]
    let bias = match &attn.qkv.bias {
        Some(bias) => bias.f_view([3, n_heads, d_head, 1])?,
        None => qkv.f_narrow(3, 0, 1)?.f_zeros_like()?,
    };
    // The biases are one more input, which is always one.
    let with_bias = Tensor::f_cat(&[&qkv, &bias], 3)?; // [qkv, head, d_head, d_model + 1]
    let (q, k) = (with_bias.f_select(0, 0)?.f_transpose(1, 2)?, with_bias.f_select(0, 1)?); // [head, d_model + 1, d_head] and back
    let qk = FactoredMatrix::new(&q, &k)?.make_even()?;
    let (q, k) = (qk.a().f_transpose(1, 2)?, qk.b()); // each [head, d_head, d_model + 1]
    let v = qkv.f_select(0, 2)?.f_transpose(1, 2)?; // [head, d_model, d_head]
    let o = attn.w_o()?; // [head, d_head, d_model]
    let ov = FactoredMatrix::new(&v, &o)?.svd()?;
    let d_model = qkv.size()[3];
    let weight =
        Tensor::f_stack(&[q.f_narrow(2, 0, d_model)?, k.f_narrow(2, 0, d_model)?, ov.u.f_transpose(1, 2)?], 0)?;
    attn.qkv.weight = weight.f_reshape([3 * n_heads * d_head, d_model])?.into();
    let zeros = q.f_narrow(2, d_model, 1)?.f_zeros_like()?;
    let bias = Tensor::f_stack(&[q.f_narrow(2, d_model, 1)?, k.f_narrow(2, d_model, 1)?, zeros], 0)?;
    attn.qkv.bias = Some(bias.f_reshape(-1)?.into());
    attn.o.weight = ov.vh()?.f_mul(&ov.s.f_unsqueeze(2)?)?.f_flatten(0, 1)?.f_tr()?.f_contiguous()?.into();
    Ok(())
}
