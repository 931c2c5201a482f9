//! Factored matrices against the products that they stand for, of drawn shapes.

use proptest::prelude::*;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::{FactoredMatrix, Slice};

const TOLERANCE: f64 = 1e-9;

/// In fp64, so that nothing hides behind rounding; the same for the same seed and shape.
fn random(shape: &[i64], seed: i64) -> Tensor {
    let n: i64 = shape.iter().product();
    let t = Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + seed as f64 * 78.233 + n as f64;
    let t = t.sin() * 43758.5453;
    (&t - t.floor() - 0.5).view(shape)
}

fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor) -> Result<(), TestCaseError> {
    prop_assert_eq!(ours.size(), theirs.size(), "{}", what);
    if ours.numel() > 0 {
        let diff = (ours - theirs).abs().max().double_value(&[]);
        prop_assert!(diff < TOLERANCE, "{what}: differs by {diff:e}");
    }
    Ok(())
}

/// Leading dimensions of both factors, which can be broadcast, and the last three.
fn shapes() -> impl Strategy<Value = (Vec<i64>, Vec<i64>, i64, i64, i64)> {
    let leading = prop::collection::vec((1i64..4, any::<bool>(), any::<bool>()), 0..3);
    (leading, 0usize..3, 1i64..7, 1i64..7, 1i64..7).prop_map(|(leading, shorter, l, m, r)| {
        let a = leading.iter().map(|(n, one, _)| if *one { 1 } else { *n }).collect();
        let b: Vec<i64> = leading.iter().map(|(n, _, one)| if *one { 1 } else { *n }).collect();
        (a, b[shorter.min(b.len())..].to_vec(), l, m, r)
    })
}

fn factors(shapes: &(Vec<i64>, Vec<i64>, i64, i64, i64)) -> (Tensor, Tensor) {
    let (a, b, l, m, r) = shapes;
    (random(&[a.as_slice(), &[*l, *m]].concat(), 1), random(&[b.as_slice(), &[*m, *r]].concat(), 2))
}

fn t(x: &Tensor) -> Tensor {
    x.transpose(-2, -1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_those_of_the_full_matrix(shapes in shapes(), n in 1i64..6) {
        let (a, b) = factors(&shapes);
        let (dense, matrix) = (a.matmul(&b), FactoredMatrix::new(&a, &b).unwrap());
        let (l, r) = (matrix.ldim(), matrix.rdim());
        prop_assert_eq!(matrix.shape(), dense.size());
        prop_assert_eq!(matrix.ndim(), dense.dim());
        assert_close("ab", &matrix.ab().unwrap(), &dense)?;
        assert_close("t", &matrix.t().unwrap().ab().unwrap(), &t(&dense))?;
        assert_close("scale", &matrix.scale(-2.5).unwrap().ab().unwrap(), &(&dense * -2.5))?;
        let right = random(&[r, n], 3);
        assert_close("matmul", &matrix.matmul(&right).unwrap().ab().unwrap(), &dense.matmul(&right))?;
        let left = random(&[2, 1, 1, n, l], 4);
        assert_close("left_matmul", &matrix.left_matmul(&left).unwrap().ab().unwrap(), &left.matmul(&dense))?;
        let other = FactoredMatrix::new(&random(&[r, 2], 5), &random(&[2, n], 6)).unwrap();
        let composed = matrix.compose(&other).unwrap();
        assert_close("compose", &composed.ab().unwrap(), &dense.matmul(&other.ab().unwrap()))?;
        prop_assert!(composed.mdim() <= matrix.mdim().min(other.mdim()));
        let (v, w) = (random(&[r], 7), random(&[l], 8));
        assert_close("matvec", &matrix.matvec(&v).unwrap(), &dense.matmul(&v))?;
        assert_close("vecmat", &matrix.vecmat(&w).unwrap(), &t(&dense).matmul(&w))?;
    }

    #[test]
    fn decompositions_are_those_of_the_full_matrix(shapes in shapes()) {
        let (a, b) = factors(&shapes);
        let (dense, matrix) = (a.matmul(&b), FactoredMatrix::new(&a, &b).unwrap());
        let last = [-2i64, -1];
        assert_close("norm", &matrix.norm().unwrap(), &dense.norm_scalaropt_dim(2.0, last.as_slice(), false))?;
        let svd = matrix.svd().unwrap();
        let k = matrix.ldim().min(matrix.mdim()).min(matrix.rdim());
        prop_assert_eq!(*svd.s.size().last().unwrap(), k);
        let diagonal = svd.s.diag_embed(0, -2, -1);
        assert_close("svd", &svd.u.matmul(&diagonal).matmul(&svd.vh().unwrap()), &dense)?;
        let (_, s, _) = dense.svd(true, true);
        assert_close("singular values", &svd.s, &s.narrow(-1, 0, k))?;
        let one = Tensor::eye(k, (Kind::Double, Device::Cpu));
        assert_close("U is orthogonal", &t(&svd.u).matmul(&svd.u), &one.expand_as(&diagonal))?;
        assert_close("V is orthogonal", &t(&svd.v).matmul(&svd.v), &one.expand_as(&diagonal))?;
        let even = matrix.make_even().unwrap();
        assert_close("make_even", &even.ab().unwrap(), &dense)?;
        assert_close("evenly", &t(even.a()).matmul(even.a()), &diagonal)?;
        assert_close("evenly", &even.b().matmul(&t(even.b())), &diagonal)?;
        assert_close("collapse_l", &svd.u.matmul(&matrix.collapse_l().unwrap()), &dense)?;
        assert_close("collapse_r", &matrix.collapse_r().unwrap().matmul(&svd.vh().unwrap()), &dense)?;
    }

    #[test]
    fn eigenvalues_are_those_of_the_full_matrix(leading in 0i64..3, n in 1i64..7, m in 1i64..7) {
        let leading: Vec<i64> = (leading > 0).then_some(leading).into_iter().collect();
        let (a, b) = factors(&(leading.clone(), leading, n, m, n));
        let matrix = FactoredMatrix::new(&a, &b).unwrap();
        assert_close("ba", &matrix.ba().unwrap(), &b.matmul(&a))?;
        let found = matrix.eigenvalues().unwrap();
        prop_assert_eq!(*found.size().last().unwrap(), m);
        // In no order, so by the sums of their powers: the traces of the matrix's powers.
        let dense = a.matmul(&b);
        let (mut power, mut powers) = (dense.shallow_clone(), found.shallow_clone());
        for _ in 0..3 {
            let trace = power.diagonal(0, -2, -1).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
            let sum = powers.sum_dim_intlist([-1i64].as_slice(), false, None);
            assert_close("real", &sum.real(), &trace)?;
            assert_close("imaginary", &sum.imag(), &trace.zeros_like())?;
            (power, powers) = (power.matmul(&dense), powers * &found);
        }
    }

    #[test]
    fn composition_scores_are_those_of_the_full_matrices(heads in 1i64..4, later in 1i64..4, d in 1i64..8, m in 1i64..4) {
        let factored = |shape: &[i64], seed| {
            let wide = |last: [i64; 2]| [shape, &last].concat();
            FactoredMatrix::new(&random(&wide([d, m]), seed), &random(&wide([m, d]), seed + 1)).unwrap()
        };
        let (left, right) = (factored(&[heads, 1], 1), factored(&[later], 3));
        let norm = |x: &Tensor| x.norm_scalaropt_dim(2.0, [-2i64, -1].as_slice(), false);
        let (w1, w2) = (left.ab().unwrap(), right.ab().unwrap());
        let expected = norm(&w1.matmul(&w2)) / norm(&w1) / norm(&w2);
        assert_close("score", &left.composition_score(&right).unwrap(), &expected)?;
    }

    #[test]
    fn parts_are_those_of_the_full_matrix(row in -5i64..5, start in 0i64..4, column in 0i64..6, layer in 0i64..3) {
        let (a, b) = (random(&[3, 2, 5, 2], 1), random(&[3, 2, 2, 6], 2));
        let (dense, matrix) = (a.matmul(&b), FactoredMatrix::new(&a, &b).unwrap());
        assert_close("a layer", &matrix.index([layer]).unwrap().ab().unwrap(), &dense.get(layer))?;
        assert_close("a layer and head", &matrix.index([layer, -1]).unwrap().ab().unwrap(), &dense.get(layer).get(1))?;
        let wrapped = row.rem_euclid(5);
        let all = || Slice::from(..);
        let some = [all(), 1.into(), (start..).into(), column.into()];
        let expected = dense.i((.., 1, start.., column..column + 1));
        assert_close("rows and a column", &matrix.index(some).unwrap().ab().unwrap(), &expected)?;
        assert_close("rows", &matrix.rows(row).unwrap().ab().unwrap(), &dense.narrow(-2, wrapped, 1))?;
        assert_close("cols", &matrix.cols([column, 0]).unwrap().ab().unwrap(), &dense.index_select(-1, &Tensor::from_slice(&[column, 0])))?;
        assert_close("corner", &matrix.get_corner(start).unwrap(), &dense.i((..start.min(3), ..start.min(2), ..start, ..start)))?;
        for dim in 0..3 {
            assert_close("unsqueeze", &matrix.unsqueeze(dim).unwrap().ab().unwrap(), &dense.unsqueeze(dim as i64))?;
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (a, b) = (random(&[2, 4, 3], 1), random(&[2, 3, 5], 2));
    let matrix = FactoredMatrix::new(&a, &b).unwrap();
    let of = |result: tch_lens::Result<FactoredMatrix>| result.unwrap_err().to_string();
    let tensor = |result: tch_lens::Result<Tensor>| result.unwrap_err().to_string();
    assert_eq!(
        of(FactoredMatrix::new(&a, &random(&[3], 1))),
        "the right factor has shape [3], expected [.., mdim, rdim]"
    );
    assert_eq!(
        of(FactoredMatrix::new(&a, &random(&[3, 3, 5], 1))),
        "the right factor has shape [3, 3, 5], expected leading dimensions that broadcast with [2]"
    );
    assert_eq!(of(matrix.matmul(&a)), "the right matrix has shape [2, 4, 3], expected [.., 5, n]");
    assert_eq!(of(matrix.left_matmul(&a)), "the left matrix has shape [2, 4, 3], expected [.., n, 4]");
    assert_eq!(
        of(matrix.matmul(&random(&[3, 5, 1], 1))),
        "the right matrix has shape [3, 5, 1], expected leading dimensions that broadcast with [2]"
    );
    assert_eq!(of(matrix.compose(&matrix)), "the right matrix has shape [2, 4, 3], expected [.., 5, n]");
    assert_eq!(tensor(matrix.matvec(&random(&[4], 1))), "the vector has shape [4], expected [5]");
    assert_eq!(tensor(matrix.vecmat(&a)), "the vector has shape [2, 4, 3], expected [4]");
    let square = "the factored matrix has shape [2, 4, 5], expected a square matrix";
    assert!(tensor(matrix.ba()).starts_with(square));
    assert!(tensor(matrix.eigenvalues()).starts_with(square));
    assert_eq!(tensor(matrix.composition_score(&matrix)), "the right matrix has shape [2, 4, 5], expected [.., 5, n]");
    assert_eq!(of(matrix.index([2])), "index 2 is out of range for the leading axis, which has 2 entries");
    assert_eq!(of(matrix.index([0, 4])), "index 4 is out of range for the row axis, which has 4 entries");
    assert_eq!(of(matrix.cols(5)), "index 5 is out of range for the column axis, which has 5 entries");
    assert_eq!(
        of(matrix.index([0; 4])),
        "a factored matrix of shape [2, 4, 5] takes at most 3 slices, but 4 were given"
    );
    assert_eq!(of(matrix.unsqueeze(2)), "a dimension can be inserted at 0 to 1, before the rows and columns, not at 2");
}
