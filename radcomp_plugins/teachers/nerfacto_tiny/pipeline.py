"""Pipeline of nerfacto-tiny."""

from radcomp_plugins.teachers.nerfacto_tiny.config import NerfactoTinyPipelineConfig
from radcomp_plugins.teachers.pipeline import TeacherPipeline


class NerfactoTinyPipeline(TeacherPipeline):
    """The teachers' pipeline."""

    config: NerfactoTinyPipelineConfig
