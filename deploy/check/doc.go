// Package check holds no code, only tests: what is shipped in deploy/ is rendered, parsed
// and validated by the tools of those who will use it. helm renders the chart, also with
// values that it has to refuse; docker-compose reads the compose file; Prometheus reads the
// alert rules and runs them against made-up series. Then all of it is held against birdtap
// itself: every variable and every metric that is named has to be one that the program knows.
//
// helm and kubeconform are the programs that .ci/tools.mod pins; .ci/chart has them lint
// and validate the chart before. It needs no network, and no cluster. make helm-lint runs
// both.
package check
