//! The factored output head: a class, then a token of the class.

use std::ops::Range;

use super::layer::{Scratch, exactly, room};
use super::matrix::Matrix;
use super::pack;
use super::rows::{self, UNIT};

/// The head as a step of training needs it.
#[derive(Debug)]
pub struct Head {
    pub norm: Vec<f32>,
    pub classes: Matrix,
    pub class_bias: Vec<f32>,
    /// By token: step, row in steps, bias.
    pub steps: Vec<f32>,
    pub weights: Vec<f32>,
    pub bias: Vec<f32>,
    /// By token, and the tokens by class.
    pub class_of: Vec<u32>,
    pub members: Vec<Range<usize>>,
    pub rounded: bool,
}

/// Where the gradients of the head lie among all.
#[derive(Debug, Clone)]
pub struct HeadPlaces {
    pub norm: Range<usize>,
    pub classes: Range<usize>,
    pub class_bias: Range<usize>,
    pub tokens: Range<usize>,
    pub token_bias: Range<usize>,
}

/// Memory that is used again and again.
#[derive(Debug, Default)]
pub struct HeadWork {
    reciprocals: Vec<f32>,
    hidden: Vec<f32>,
    packed: Vec<u32>,
    logits: Vec<f32>,
    members: Vec<f32>,
    dhidden: Vec<f32>,
    /// What each target of the last run costs in nats.
    pub costs: Vec<f64>,
}

impl Head {
    /// The costs of all targets from the residual stream `x`, in `work.costs`. With `back`, `weight` times their sum goes back
    /// into the gradients, and `dx` becomes its gradient by `x`.
    pub fn run(
        &self,
        x: &[f32],
        targets: &[u16],
        weight: f32,
        work: &mut HeadWork,
        scratch: &mut Scratch,
        back: Option<(&mut [f32], &HeadPlaces, &mut [f32])>,
    ) {
        let (d, count, classes) = (self.norm.len(), targets.len(), self.classes.rows);
        let hidden = exactly(&mut work.hidden, x.len());
        rows::normalise(
            x,
            &self.norm,
            self.rounded,
            hidden,
            exactly(&mut work.reciprocals, count),
        );
        pack::rows_into(hidden, d, exactly(&mut work.packed, count * d.div_ceil(2)));
        let logits = exactly(&mut work.logits, count * classes);
        self.classes.apply(&work.packed, count, logits);
        let sums = room(&mut scratch.floats, logits.len());
        sums.copy_from_slice(logits);
        logits
            .chunks_exact_mut(classes)
            .for_each(|row| row.copy_from_slice(&self.class_bias));
        rows::add_scaled(logits, sums, &self.classes.scales(UNIT, 1.0));
        let rows = logits.chunks_exact_mut(classes).zip(targets);
        let costs = exactly(&mut work.costs, count).iter_mut();
        for ((row, &target), cost) in rows.zip(costs) {
            let class = self.class_of[usize::from(target)] as usize;
            *cost = f64::from(rows::cross_entropy(row, class, weight));
        }
        let Some((dx, places, gradients)) = back else {
            return self.tokens(targets, weight, work, None);
        };
        self.classes_back(work, scratch, places, gradients, count);
        self.tokens(targets, weight, work, Some((places, gradients)));
        dx.fill(0.0);
        let dgain = &mut gradients[places.norm.clone()];
        let dhidden = &mut work.dhidden;
        rows::normalise_back(
            x,
            &self.norm,
            &work.reciprocals,
            self.rounded,
            dhidden,
            dx,
            dgain,
        );
    }

    /// From the gradients of class logits to those of the class head, and to `work.dhidden`.
    fn classes_back(
        &self,
        work: &mut HeadWork,
        scratch: &mut Scratch,
        places: &HeadPlaces,
        gradients: &mut [f32],
        count: usize,
    ) {
        let (classes, d) = (self.classes.rows, self.norm.len());
        let bias = &mut gradients[places.class_bias.clone()];
        for row in work.logits.chunks_exact(classes) {
            bias.iter_mut()
                .zip(row)
                .for_each(|(bias, gradient)| *bias += gradient);
        }
        let scaled = room(&mut scratch.floats, count * classes);
        rows::scale_columns(&work.logits, &self.classes.steps, scaled);
        let pairs = classes.div_ceil(2);
        pack::rows_into(scaled, classes, exactly(&mut scratch.packed, count * pairs));
        pack::interleave_into(&scratch.packed, pairs, 0, pairs, &mut scratch.left);
        pack::interleave_into(
            &work.packed,
            d.div_ceil(2),
            0,
            d.div_ceil(2),
            &mut scratch.right,
        );
        let out = &mut gradients[places.classes.clone()];
        self.classes
            .gradient(&scratch.left, &scratch.right, count, UNIT, out);
        let dhidden = exactly(&mut work.dhidden, count * d);
        self.classes.back(&scratch.packed, count, dhidden);
    }

    /// Adds the costs of the tokens given their classes, class after class, and to gradients and `work.dhidden`.
    fn tokens(
        &self,
        targets: &[u16],
        weight: f32,
        work: &mut HeadWork,
        mut back: Option<(&HeadPlaces, &mut [f32])>,
    ) {
        let d = self.norm.len();
        let mut order: Vec<u32> = (0..targets.len() as u32).collect();
        order.sort_unstable_by_key(|&at| (self.class_of[usize::from(targets[at as usize])], at));
        for at in order.into_iter().map(|at| at as usize) {
            let target = usize::from(targets[at]);
            let members = self.members[self.class_of[target] as usize].clone();
            let weights = &self.weights[members.start * d..members.end * d];
            let hidden = &work.hidden[at * d..][..d];
            let logits = exactly(&mut work.members, members.len());
            rows::dots(hidden, weights, logits);
            let scales = self.steps[members.clone()]
                .iter()
                .zip(&self.bias[members.clone()]);
            for (logit, (step, bias)) in logits.iter_mut().zip(scales) {
                *logit = *logit * step / UNIT + bias;
            }
            let nats = rows::cross_entropy(logits, target - members.start, weight);
            work.costs[at] += f64::from(nats);
            let Some((places, gradients)) = &mut back else {
                continue;
            };
            let bias = &mut gradients[places.token_bias.clone()][members.clone()];
            bias.iter_mut()
                .zip(&*logits)
                .for_each(|(bias, gradient)| *bias += gradient);
            let own = &mut gradients[places.tokens.clone()][members.start * d..members.end * d];
            let row = &mut work.dhidden[at * d..][..d];
            rows::dots_back(
                logits,
                &self.steps[members],
                weights,
                hidden,
                1.0 / UNIT,
                row,
                own,
            );
        }
    }
}
