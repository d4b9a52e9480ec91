"""A trained network -> a file that others can use, and what it is worth on photos it has never seen.

predict       an exported file in use; needs neither torch nor pandas
graphs        a model as an ONNX graph, exported once for all runs of a network
export        the graph in fp32, its parity with torch; latency and size
quantize      INT8 by static quantization, by one recipe
int8_search   the recipe that suits a network, tried under a gate
photo_input   the part of a graph that turns a photo into the network's image
heat          where the network looked, as an output of its graph
photo_files   the file others use: a photo in, probabilities and heat out
model_files   both files of a run
int8_verdict  is INT8 broken, and what does it cost in accuracy at most?
gate          a file on photos from disk: its pixels, its labels, and where it looks
verify        export.json: both files checked against torch and measured
check_file    an exported file against its card and its run
web_page      a page that runs an exported file in the browser; needs neither torch nor pandas
model_card    model.md: what a run's files are, what their numbers speak of, how to call them
test_set      the test photos, opened once, predicted by every file of the model
test_scores   test.json: what these predictions are worth

New photos, by `fruitlib predict`, where only what `pip install fruitlib` brings is installed:

named_photos     the photos that a person names
answers          these, through a file, in batches
heat_pictures    where the file looked, as pictures
predict_command  the command
"""
