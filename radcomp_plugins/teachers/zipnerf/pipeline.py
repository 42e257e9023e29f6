"""Pipeline of Zip-NeRF."""

from radcomp_plugins.teachers.pipeline import TeacherPipeline
from radcomp_plugins.teachers.zipnerf.config import ZipNerfPipelineConfig


class ZipNerfPipeline(TeacherPipeline):
    """The teachers' pipeline."""

    config: ZipNerfPipelineConfig
