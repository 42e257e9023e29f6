"""The menu: one module per method, holding only its MethodSpecification. Shipped as radcomp_plugins.method_configs."""

from radcomp_plugins import compat

compat.apply()
