# OpenTofu reads this file instead of posture.tftest.hcl, whose mocks (source, override_during) it does not support, and which
# would make tofu init fail. The tests run with Terraform; docs/deploy.md says what is checked with OpenTofu.
