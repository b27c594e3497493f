"""A posed problem with its one task."""

from typing import ClassVar

import metabilevel as mb


class OneTask(mb.TaskDistribution):
    """The same task at every draw; its query is `test` in the split of that name, where there is one."""

    single: ClassVar[bool] = True
    subject: mb.Posed
    task: mb.Episode
    test: mb.Data | None = None

    def sample(self, key, split):
        return self.task._replace(query=self.test) if split == "test" and self.test is not None else self.task
