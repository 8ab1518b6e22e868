"""What tests of every layer share: contract suites, fakes named as fakes, hypothesis strategies."""
