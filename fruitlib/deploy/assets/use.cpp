#include <algorithm>
#include <iostream>
#include <onnxruntime_cxx_api.h>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main() {
  const char* classes[] = {CLASSES};
  Ort::Env env;
  Ort::Session session(env, ORT_TSTR("model.onnx"), Ort::SessionOptions{});
  cv::Mat photo = cv::imread("photo.jpg");  // upright, as EXIF says, without transparency
  cv::cvtColor(photo, photo, cv::COLOR_BGR2RGB);
  const int64_t shape[] = {1, photo.rows, photo.cols, 3};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto photos = Ort::Value::CreateTensor<uint8_t>(memory, photo.data, 3 * photo.total(), shape, 4);
  const char *inputs[] = {"photos"}, *outputs[] = {"probabilities"};
  auto found = session.Run(Ort::RunOptions{}, inputs, &photos, 1, outputs, 1);
  const float* probabilities = found[0].GetTensorData<float>();
  const auto best = std::max_element(probabilities, probabilities + std::size(classes)) - probabilities;
  std::cout << classes[best] << " " << probabilities[best] << "\n";
}
