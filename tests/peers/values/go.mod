module peers/values

go 1.25.0
