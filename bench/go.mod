module github.com/gantryd/gantry/bench

go 1.26.0
