"""RecurrentPPO of sb3-contrib as it is and accelerated: the same training from the same seed.

An agent with LSTMs balances a pole without being shown any velocity.

    pip install --no-deps sb3-contrib stable-baselines3 gymnasium cloudpickle farama-notifications pandas matplotlib
    python recurrent_ppo.py [--steps 8192] [--threads 1]
"""

import argparse

import numpy as np
import torch
from side_by_side import Compared, compare, timed

try:
    import gymnasium
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
except ImportError as error:
    raise SystemExit(
        f"{error}: pip install --no-deps sb3-contrib stable-baselines3 gymnasium cloudpickle farama-notifications "
        "pandas matplotlib"
    ) from None


class Positions(gymnasium.ObservationWrapper):
    """CartPole's positions without the velocities: the agent needs a memory."""

    def __init__(self, env):
        super().__init__(env)
        low, high = env.observation_space.low[::2], env.observation_space.high[::2]
        self.observation_space = gymnasium.spaces.Box(low, high)

    def observation(self, observation):
        return np.ascontiguousarray(observation[::2])


class Losses(BaseCallback):
    """Keeps the loss of each update: it is there when the next collection of steps begins."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def _note(self):
        if "train/loss" in self.logger.name_to_value:
            self.losses.append(float(self.logger.name_to_value["train/loss"]))

    def _on_rollout_start(self):
        self._note()

    def _on_training_end(self):
        self._note()

    def _on_step(self):
        return True


def run(prepare, steps=8192, hidden=256, envs=8):
    env = make_vec_env("CartPole-v1", envs, seed=0, wrapper_class=Positions)
    agent = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        seed=0,
        policy_kwargs={"lstm_hidden_size": hidden},
        device="cpu",
    )
    prepare(agent.policy)
    noted = Losses()

    def train():
        agent.learn(steps, callback=noted, log_interval=10**9)
        return noted.losses

    return timed(train, agent.policy)


def main(arguments=None) -> Compared:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    return compare(lambda prepare: run(prepare, given.steps))


if __name__ == "__main__":
    main()
