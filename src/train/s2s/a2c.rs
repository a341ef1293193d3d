//! Advantage actor-critic (Mnih et al. 2016) on code length: how a compressor learns from what the latents it wrote
//! were worth.
//!
//! An episode is a string of latents; its actions are the latents and the end. An action costs what it takes under
//! the prior of latents, and behind the last one stands the residual, what the decompressor makes of the string: all
//! rewards are negative bits.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Evaluation, Result, S2sError};

/// How an episode becomes a loss. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// What a reward is worth one action earlier, 0 to 1.
    pub gamma: f64,
    /// How far an advantage looks ahead, 0 to 1 (Schulman et al. 2016): 0 is one action, behind which the critic
    /// answers for the rest; with 1 all rewards count and the critic is only compared with.
    pub lambda: f64,
    /// Rewards are multiplied by it, above 0.
    pub reward_scale: f64,
    /// Share of the critic's loss in the whole.
    pub critic: f64,
    /// What a nat of the actions' entropy takes off the loss.
    pub entropy: f64,
    /// Largest weight of an action that another policy chose, above 0.
    pub clip: f64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            gamma: 1.0,
            lambda: 0.0,
            reward_scale: 1.0,
            critic: 1.0,
            entropy: 0.0,
            clip: 1.0,
        }
    }
}

impl Options {
    /// Err unless all values are within their ranges.
    ///
    /// # Errors
    /// If one is not; the error names it.
    pub fn check(&self) -> Result<()> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        for (name, value, fits) in [
            ("gamma", self.gamma, share(self.gamma)),
            ("lambda", self.lambda, share(self.lambda)),
            (
                "reward_scale",
                self.reward_scale,
                positive(self.reward_scale),
            ),
            ("critic", self.critic, not_negative(self.critic)),
            ("entropy", self.entropy, not_negative(self.entropy)),
            ("clip", self.clip, positive(self.clip)),
        ] {
            if !fits {
                return Err(S2sError::Config(format!("{name} is {value}")));
            }
        }
        Ok(())
    }
}

/// What part of their cost latents pay while training goes on: less in the beginning, so that they come into use at
/// all, everything at the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostSchedule {
    /// The part paid in the beginning, 0 to 1.
    pub start: f64,
    /// The share of training, 0 to 1, behind which everything is paid.
    pub share: f64,
}

impl CostSchedule {
    /// The part paid when a share `done` of training is over: it rises in a straight line.
    pub fn factor(&self, done: f64) -> f64 {
        match done < self.share {
            true => self.start + (1.0 - self.start) * done / self.share,
            false => 1.0,
        }
    }
}

/// What became of a string of latents.
#[derive(Debug, Clone, Copy)]
pub struct Episode<'a> {
    /// Bits of each action, as [`LatentPrior::costs`](crate::model::latents::LatentPrior::costs) gives them.
    pub costs: &'a [f64],
    /// Bits of the residual, or how many more than without latents.
    pub residual: f64,
    /// Log-probability of each action in nats when it was chosen; None if the compressor is still the same.
    pub behaviour: Option<&'a [f32]>,
}

/// The reward of each action: minus the bits that it costs, of which the part `factor` is paid, and with the last
/// one minus the bits of the residual; all times `scale`.
pub fn rewards(costs: &[f64], residual: f64, factor: f64, scale: f64) -> Vec<f64> {
    let of = |cost: &f64| -cost * factor * scale;
    let mut rewards: Vec<f64> = costs.iter().map(of).collect();
    if let Some(last) = rewards.last_mut() {
        *last -= residual * scale;
    }
    rewards
}

/// What each action and those behind it bring, a reward losing `gamma` with every action before it.
pub fn returns(rewards: &[f64], gamma: f64) -> Vec<f64> {
    let mut returns = rewards.to_vec();
    for at in (1..returns.len()).rev() {
        returns[at - 1] += gamma * returns[at];
    }
    returns
}

/// How much better each action was than the critic expected, r + gamma v' - v, and with a `lambda` above 0 those
/// behind it, each times (gamma lambda)^distance. Behind the last action the critic expects nothing. `values` are
/// as many as `rewards`.
pub fn advantages(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
    let following = values.iter().skip(1).chain([&0.0]);
    let surprises = rewards.iter().zip(values).zip(following);
    let surprises: Vec<f64> = surprises
        .map(|((r, v), next)| r + gamma * next - v)
        .collect();
    returns(&surprises, gamma * lambda)
}

/// How much likelier an action is now than when it was chosen, at most `clip` (Espeholt et al. 2018). Log-probabilities
/// are in nats.
pub fn importance(now: f32, behaviour: f32, clip: f64) -> f64 {
    f64::from(now - behaviour).exp().min(clip)
}

/// A loss and its parts, means over all actions.
#[derive(Debug)]
pub struct Losses {
    /// What is to be made smaller.
    pub total: Tensor,
    /// -ln pi(action) * advantage.
    pub actor: f32,
    /// Square of the advantage.
    pub critic: f32,
    /// In nats.
    pub entropy: f32,
}

/// One number for each action, batch x actions, 0 behind the last of a string.
struct Table {
    columns: usize,
    values: Vec<f32>,
}

impl Table {
    fn add(&mut self, row: impl Iterator<Item = f64>) {
        let start = self.values.len();
        self.values.extend(row.map(|value| value as f32));
        self.values.resize(start + self.columns, 0.0);
    }

    fn tensor(self, like: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.values, like.shape(), like.device())?)
    }
}

/// The loss of episodes, whose strings `evaluation` is about; latents pay the part `factor` of their cost. Neither
/// the advantages nor the weights have gradients.
///
/// # Errors
/// If the episodes are not those of the evaluation, or the device fails.
pub fn losses(
    evaluation: &Evaluation,
    episodes: &[Episode],
    factor: f64,
    options: &Options,
) -> Result<Losses> {
    let (batch, columns) = evaluation.values.dims2()?;
    let values = evaluation.values.to_vec2::<f32>()?;
    let now = evaluation.log_probs.to_vec2::<f32>()?;
    let taken = evaluation.taken.to_vec2::<f32>()?;
    if episodes.len() != batch {
        let what = format!("{} episodes for {batch} strings", episodes.len());
        return Err(S2sError::Input(what));
    }
    let table = || Table {
        columns,
        values: Vec::with_capacity(batch * columns),
    };
    let (mut targets, mut blame, mut weights) = (table(), table(), table());
    for (row, episode) in episodes.iter().enumerate() {
        let count = taken[row].iter().filter(|&&taken| taken > 0.0).count();
        let behaviour = episode.behaviour.unwrap_or(&now[row][..count]);
        if episode.costs.len() != count || behaviour.len() != count {
            let what = format!("an episode of {} actions, not {count}", episode.costs.len());
            return Err(S2sError::Input(what));
        }
        let values: Vec<f64> = values[row][..count].iter().map(|&v| v.into()).collect();
        let rewards = rewards(
            episode.costs,
            episode.residual,
            factor,
            options.reward_scale,
        );
        let advantages = advantages(&rewards, &values, options.gamma, options.lambda);
        let weigh = |at: usize| match episode.behaviour {
            Some(behaviour) => importance(now[row][at], behaviour[at], options.clip),
            None => 1.0,
        };
        let weight: Vec<f64> = (0..count).map(weigh).collect();
        targets.add(advantages.iter().zip(&values).map(|(a, v)| a + v));
        blame.add(advantages.iter().zip(&weight).map(|(a, w)| a * w));
        weights.add(weight.into_iter());
    }
    let like = &evaluation.values;
    let actions = evaluation.taken.sum_all()?;
    let mean = |each: Tensor| each.sum_all()?.div(&actions);
    let blame = blame.tensor(like)?;
    let actor = mean((&evaluation.log_probs * blame)?.neg()?)?;
    let missed = (&evaluation.values - targets.tensor(like)?)?.sqr()?;
    let critic = mean((missed * weights.tensor(like)?)?)?;
    let entropy = mean(evaluation.entropies.clone())?;
    let total = (&actor + ((&critic * options.critic)? - (&entropy * options.entropy)?)?)?;
    Ok(Losses {
        total,
        actor: actor.to_scalar()?,
        critic: critic.to_scalar()?,
        entropy: entropy.to_scalar()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn rewards_are_minus_the_bits() {
        let rewarded = rewards(&[2.0, 4.0, 1.0], 10.0, 0.5, 0.25);
        assert_eq!(rewarded, [-0.25, -0.5, -2.625]);
        assert!(rewards(&[], 10.0, 1.0, 1.0).is_empty());
    }

    #[test]
    fn returns_and_advantages_by_hand() {
        let rewards = [1.0, 2.0, 4.0];
        assert_eq!(returns(&rewards, 0.5), [3.0, 4.0, 4.0]);
        assert_eq!(returns(&rewards, 1.0), [7.0, 6.0, 4.0]);
        let values = [6.0, 8.0, 3.0];
        // 1 + 8/2 - 6, 2 + 3/2 - 8, 4 - 3
        assert_eq!(advantages(&rewards, &values, 0.5, 0.0), [-1.0, -4.5, 1.0]);
        // what is behind, a quarter of it each time: -4.5 + 1/4, -1 - 4.25/4
        assert_eq!(
            advantages(&rewards, &values, 0.5, 0.5),
            [-2.0625, -4.25, 1.0]
        );
        // all rewards: returns less values
        assert_eq!(advantages(&rewards, &values, 1.0, 1.0), [1.0, -2.0, 1.0]);
    }

    #[test]
    fn costs_rise_in_a_straight_line() {
        let schedule = CostSchedule {
            start: 0.2,
            share: 0.5,
        };
        let factors = [0.0, 0.25, 0.5, 0.99].map(|done| schedule.factor(done));
        for (factor, expected) in factors.iter().zip([0.2, 0.6, 1.0, 1.0]) {
            assert!((factor - expected).abs() < 1e-12, "{factors:?}");
        }
        let at_once = CostSchedule {
            start: 0.2,
            share: 0.0,
        };
        assert_eq!(at_once.factor(0.0), 1.0);
    }

    #[test]
    fn weights_are_clipped() {
        assert!((importance(-1.0, -2.0, 10.0) - 1f64.exp()).abs() < 1e-6);
        assert_eq!(importance(-1.0, -2.0, 1.5), 1.5);
        assert!((importance(-2.0, -1.0, 1.5) - (-1f64).exp()).abs() < 1e-6);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        assert!(Options::default().check().is_ok());
        let wrong = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().is_err()
        };
        assert!(wrong(|o| o.gamma = 1.1));
        assert!(wrong(|o| o.lambda = -0.1));
        assert!(wrong(|o| o.reward_scale = 0.0));
        assert!(wrong(|o| o.critic = f64::INFINITY));
        assert!(wrong(|o| o.entropy = f64::NAN));
        assert!(wrong(|o| o.clip = 0.0));
    }

    /// Two strings, of two actions and of one.
    fn evaluation() -> (Evaluation, Var, Var, Var) {
        let var = |rows: [[f32; 2]; 2]| Var::new(&rows, &Device::Cpu).unwrap();
        let log_probs = var([[-1.0, -2.0], [-0.5, 0.0]]);
        let values = var([[1.0, 2.0], [3.0, 0.0]]);
        let entropies = var([[0.3, 0.6], [0.9, 0.0]]);
        let evaluation = Evaluation {
            log_probs: log_probs.as_tensor().clone(),
            entropies: entropies.as_tensor().clone(),
            values: values.as_tensor().clone(),
            taken: Tensor::new(&[[1f32, 1.0], [1.0, 0.0]], &Device::Cpu).unwrap(),
        };
        (evaluation, log_probs, values, entropies)
    }

    fn close(found: &Tensor, expected: &[f64]) {
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        for (one, two) in found.iter().zip(expected) {
            assert!(
                (f64::from(*one) - two).abs() < 1e-5,
                "{found:?} {expected:?}"
            );
        }
    }

    #[test]
    fn losses_and_gradients_by_hand() {
        let (evaluation, log_probs, values, entropies) = evaluation();
        let options = Options {
            gamma: 0.5,
            critic: 0.5,
            entropy: 0.1,
            clip: 2.0,
            ..Options::default()
        };
        // the first action is twice as likely as when it was chosen, the second four times
        let behaviour = [-1.0 - 2f32.ln(), -2.0 - 4f32.ln()];
        let episodes = [
            Episode {
                costs: &[4.0, 2.0],
                residual: 3.0,
                behaviour: Some(&behaviour),
            },
            Episode {
                costs: &[2.0],
                residual: -5.0,
                behaviour: None,
            },
        ];
        // rewards -2, -4 and 4; advantages -2 + 1 - 1, -4 - 2 and 4 - 3; weights 2, 2, 1
        let losses = losses(&evaluation, &episodes, 0.5, &options).unwrap();
        assert!((losses.actor - (-4.0 - 24.0 + 0.5) / 3.0).abs() < 1e-5);
        assert!((losses.critic - (8.0 + 72.0 + 1.0) / 3.0).abs() < 1e-4);
        assert!((losses.entropy - 0.6).abs() < 1e-6);
        let total = -27.5 / 3.0 + 0.5 * 27.0 - 0.06;
        close(&losses.total, &[total]);
        let gradients = losses.total.backward().unwrap();
        let of = |var: &Var| gradients.get(var.as_tensor()).unwrap().clone();
        // minus weight times advantage
        close(&of(&log_probs), &[4.0 / 3.0, 4.0, -1.0 / 3.0, 0.0]);
        // half of twice -advantage times weight: what is behind an action is no gradient's business
        close(&of(&values), &[4.0 / 3.0, 4.0, -1.0 / 3.0, 0.0]);
        close(&of(&entropies), &[-0.1 / 3.0; 4]);
    }

    #[test]
    fn episodes_of_other_strings_are_refused() {
        let (evaluation, ..) = evaluation();
        let episode = |costs| Episode {
            costs,
            residual: 0.0,
            behaviour: None,
        };
        let options = Options::default();
        let refused = |episodes: &[Episode]| losses(&evaluation, episodes, 1.0, &options).is_err();
        assert!(refused(&[episode(&[1.0, 1.0])]));
        assert!(refused(&[episode(&[1.0]), episode(&[1.0])]));
        assert!(refused(&[episode(&[1.0, 1.0]), episode(&[1.0, 1.0])]));
        let mut other = episode(&[1.0]);
        other.behaviour = Some(&[-1.0, -1.0]);
        assert!(refused(&[episode(&[1.0, 1.0]), other]));
        assert!(!refused(&[episode(&[1.0, 1.0]), episode(&[1.0])]));
    }
}
