// .npy files: what NumPy writes is read, what is written is what NumPy writes, and nothing else is accepted.
#include "launch/files/npy.hpp"

#include <sys/stat.h>

#include "files_support.hpp"
#include "launch/files/npy_convert.hpp"

namespace allnorm::launch {
namespace {

using files_support::bytes_of;
using files_support::damage;
using files_support::expect_refused;
using files_support::little;
using files_support::TemporaryFolder;
using namespace std::string_literals;

// A file of the given version with a header of exactly that text.
std::string file_bytes(const std::string& header, const std::string& data, int version = 1) {
  return "\x93NUMPY"s + static_cast<char>(version) + '\0' + little(header.size(), version == 1 ? 2 : 4) + header + data;
}
std::string header_of(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}
template <class T>
std::string raw(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}
NpyArray read_bytes(const TemporaryFolder& folder, const std::string& bytes) {
  return read_npy(folder.put("a.npy", bytes));
}
std::string data_of(const NpyArray& array) {
  return {reinterpret_cast<const char*>(array.data.data()), array.data.size()};
}

// ---- reading --------------------------------------------------------------------------------------------------------

// The bytes that NumPy 1.24 writes for np.array([[1.5, -2, 3], [0, 4, 5]], '<f4').
const std::string golden_f32 = "\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"s +
                               std::string(58, ' ') +
                               "\n\x00\x00\xc0?\x00\x00\x00\xc0\x00\x00@@\x00\x00\x00\x00\x00\x00\x80@\x00\x00\xa0@"s;
// np.array(3, '<i8'): no axes.
const std::string golden_scalar = "\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (), }"s +
                                  std::string(62, ' ') + "\n\x03\x00\x00\x00\x00\x00\x00\x00"s;
// np.asfortranarray(np.arange(6, dtype='>f8').reshape(2, 3)).
const std::string golden_fortran =
    "\x93NUMPY\x01\x00v\x00{'descr': '>f8', 'fortran_order': True, 'shape': (2, 3), }"s + std::string(59, ' ') +
    "\n\x00\x00\x00\x00\x00\x00\x00\x00@\x08\x00\x00\x00\x00\x00\x00?\xf0\x00\x00\x00\x00\x00\x00"s
    "@\x10\x00\x00\x00\x00\x00\x00@\x00\x00\x00\x00\x00\x00\x00@\x14\x00\x00\x00\x00\x00\x00"s;

TEST(Npy, ReadsWhatNumpyWrites) {
  const TemporaryFolder folder;
  const NpyArray f32 = read_bytes(folder, golden_f32);
  EXPECT_EQ(f32.type, NpyType::f32);
  EXPECT_EQ(f32.shape, (Shape{2, 3}));
  EXPECT_EQ(to_doubles(f32), (std::vector<double>{1.5, -2, 3, 0, 4, 5}));
  const NpyArray scalar = read_bytes(folder, golden_scalar);
  EXPECT_EQ(scalar.shape, Shape{});
  EXPECT_EQ(to_int64(scalar), std::vector<std::int64_t>{3});
  const NpyArray fortran = read_bytes(folder, golden_fortran);
  EXPECT_EQ(fortran.type, NpyType::f64);
  EXPECT_EQ(fortran.shape, (Shape{2, 3}));
  EXPECT_EQ(to_doubles(fortran), (std::vector<double>{0, 1, 2, 3, 4, 5}));
}

TEST(Npy, WritesWhatNumpyWrites) {
  const TemporaryFolder folder;
  const std::string path = folder / "out.npy";
  write_npy(path, read_bytes(folder, golden_f32));
  EXPECT_EQ(bytes_of(path), golden_f32);
  write_npy(path, read_bytes(folder, golden_scalar));
  EXPECT_EQ(bytes_of(path), golden_scalar);
}

TEST(Npy, ReadsEveryTypeInBothByteOrders) {
  const TemporaryFolder folder;
  const struct {
    const char* code;
    NpyType type;
    std::size_t size;
  } rows[] = {{"f8", NpyType::f64, 8}, {"f4", NpyType::f32, 4}, {"f2", NpyType::f16, 2}, {"i1", NpyType::i8, 1},
              {"i2", NpyType::i16, 2}, {"i4", NpyType::i32, 4}, {"i8", NpyType::i64, 8}, {"u1", NpyType::u8, 1},
              {"u2", NpyType::u16, 2}, {"u4", NpyType::u32, 4}, {"u8", NpyType::u64, 8}, {"b1", NpyType::b1, 1}};
  for (const auto& row : rows) {
    ASSERT_EQ(size_of(row.type), row.size);
    // Two elements of different bytes; the second is 0, so that it is a boolean too.
    std::string element;
    for (std::size_t i = 0; i < row.size; ++i) element += static_cast<char>(i + 1);
    const std::string zero(row.size, '\0'), swapped(element.rbegin(), element.rend());
    const std::string code = row.code;
    const NpyArray same = read_bytes(folder, file_bytes(header_of("<" + code, "False", "(2,)"), element + zero));
    const NpyArray other = read_bytes(folder, file_bytes(header_of(">" + code, "False", "(2,)"), swapped + zero));
    EXPECT_EQ(same.type, row.type);
    EXPECT_EQ(data_of(same), element + zero) << code;
    EXPECT_EQ(data_of(other), element + zero) << code;
    if (row.size == 1) {
      EXPECT_EQ(data_of(read_bytes(folder, file_bytes(header_of("|" + code, "False", "(2,)"), element + zero))),
                element + zero);
    }
    const std::string path = folder / "out.npy";
    write_npy(path, same);
    EXPECT_EQ(data_of(read_npy(path)), element + zero);
    EXPECT_EQ(read_npy(path).type, row.type);
  }
}

TEST(Npy, ReadsTheHeaderInAnyOrderAndSpacing) {
  const TemporaryFolder folder;
  const std::string data = raw<float>({1, 2});
  for (const std::string& header : {"{'shape':(2,),'descr':'<f4','fortran_order':False}"s,
                                    "{\"shape\": (1, 2,), \"fortran_order\": True, 'descr': \"<f4\"}"s,
                                    " \n{ 'fortran_order' :\tFalse , 'shape' : ( 2 , 1 , ) , 'descr' : '<f4' , } \n"s})
    for (const int version : {1, 2, 3})
      EXPECT_EQ(to_doubles(read_bytes(folder, file_bytes(header, data, version))), (std::vector<double>{1, 2}))
          << header;
}

TEST(Npy, TurnsFortranOrderIntoCOrder) {
  const TemporaryFolder folder;
  const Shape shape{3, 1, 257, 5, 7};  // 26985 i32: more than one piece of the reader
  std::vector<std::int32_t> stored(static_cast<std::size_t>(shape.elements()));
  std::int32_t c_index = 0;
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t j = 0; j < 257; ++j)
      for (std::int64_t k = 0; k < 5; ++k)
        for (std::int64_t l = 0; l < 7; ++l)
          stored[static_cast<std::size_t>(i + 3 * (j + 257 * (k + 5 * l)))] = c_index++;
  const std::string data(reinterpret_cast<const char*>(stored.data()), stored.size() * 4);
  const NpyArray array = read_bytes(folder, file_bytes(header_of("<i4", "True", "(3, 1, 257, 5, 7)"), data));
  EXPECT_EQ(array.shape, shape);
  const std::vector<std::int64_t> values = to_int64(array);
  for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], static_cast<std::int64_t>(i));
}

TEST(Npy, ReadsAndWritesEmptyArrays) {
  const TemporaryFolder folder;
  for (const Shape& shape : {Shape{0}, Shape{0, 3, 2}, Shape{4, 0}}) {
    const std::string path = folder / "empty.npy";
    write_npy(path, from_doubles({}, shape));
    EXPECT_EQ(read_npy(path).shape, shape);
    EXPECT_TRUE(to_doubles(read_npy(path)).empty());
  }
  EXPECT_EQ(read_bytes(folder, file_bytes(header_of("<f4", "True", "(3, 0)"), "")).shape, (Shape{3, 0}));
}

TEST(Npy, WritesAHeaderOfAMultipleOf64BytesForEveryRank) {
  const TemporaryFolder folder;
  std::vector<std::int64_t> extents;
  for (int rank = 0; rank <= Shape::max_rank; ++rank) {
    const Shape shape(extents);
    const std::vector<double> values(static_cast<std::size_t>(shape.elements()), 0.5);
    const std::string path = folder / "out.npy";
    write_npy(path, from_doubles(values, shape));
    const std::string bytes = bytes_of(path);
    const std::size_t header = bytes.size() - 8 * values.size();
    EXPECT_EQ(header % 64, 0u);
    EXPECT_EQ(bytes[header - 1], '\n');
    EXPECT_EQ(read_npy(path).shape, shape);
    extents.push_back(rank % 2 == 0 ? 1 : 3);
  }
}

// ---- what is refused ------------------------------------------------------------------------------------------------

TEST(Npy, RefusesHeadersThatAreNotTheThreeKeys) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.npy";
  const struct {
    std::string header, part;
  } rows[] = {
      {"{'descr': '<f4', 'fortran_order': False}", "lacks the key 'shape'"},
      {"{}", "lacks the key 'descr'"},
      {"{'descr': '<f4', 'shape': (1,)}", "lacks the key 'fortran_order'"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "'descr' twice"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", "has the key 'more'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", "after its dictionary"},
      {"{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}", "must have ','"},
      {"{,'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "a key in quotes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,),,}", "a key in quotes"},
      {"{'descr': '<f4', 'fortran_order': false, 'shape': (1,)}", "True or False"},
      {"{'descr': '<f4', 'fortran_order': Falsey, 'shape': (1,)}", "must have ','"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "True or False"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1)}", "must be a tuple"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': [1]}", "must have '('"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "a number of elements"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1.0,)}", "',' or ')'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}", "',' or ')'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (01,)}", "a number of elements"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", "a number of elements"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,,)}", "a number of elements"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1 1)}", "',' or ')'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,", "its end"},
      {"{'de\\x73cr': '<f4', 'fortran_order': False, 'shape': (1,)}", "a key in quotes"},
      {"{'descr\n': '<f4', 'fortran_order': False, 'shape': (1,)}", "a key in quotes"},
      {"{'descr': '<f4", "a type in quotes"},
      {"{'descr': f4, 'fortran_order': False, 'shape': (1,)}", "a type in quotes"},
      {"['descr', '<f4']", "must have '{'"},
      {"", "must have '{'"},
      {std::string(40000, '{'), "a key in quotes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", "more than 8 axes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "more than 2^63-1 elements"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 2)}", "more than 2^63-1 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,)}", "more than 2^63-1 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904, 4611686018427387904)}",
       "more than 2^63-1 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}", "must have 4611686018427387904"},
  };
  for (const auto& row : rows)
    expect_refused([&] { read_bytes(folder, file_bytes(row.header, "abcd")); }, path, row.part);
}

TEST(Npy, RefusesTypesThatAreNotNumbers) {
  const TemporaryFolder folder;
  const struct {
    std::string descr, part;
  } rows[] = {{"|O", "Python objects"}, {"O", "Python objects"},   {"<c8", "complex"},     {"<c16", "complex"},
              {"<U3", "text"},          {"|S4", "text"},           {"|V4", "structured"},  {"<M8[ns]", "dates"},
              {"<m8", "dates"},         {"<f16", "must be one"},   {"=f4", "must be one"}, {"|f4", "must be one"},
              {"f4", "must be one"},    {"<f3", "must be one"},    {"", "must be one"},    {"<", "must be one"},
              {"<f4 ", "must be one"},  {"\xc3\xa9", "\\xc3\\xa9"}};
  for (const auto& row : rows)
    expect_refused([&] { read_bytes(folder, file_bytes(header_of(row.descr, "False", "(1,)"), "abcd")); },
                   folder / "a.npy", row.part);
  expect_refused(
      [&] {
        read_bytes(folder, file_bytes("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}", "abcd"));
      },
      folder / "a.npy", "structured");
}

TEST(Npy, RefusesFilesThatAreLongerOrShorterThanTheySay) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.npy";
  for (std::size_t length = 0; length < golden_f32.size(); ++length)
    expect_refused([&] { read_bytes(folder, golden_f32.substr(0, length)); }, path, "must");
  expect_refused([&] { read_bytes(folder, golden_f32 + "x"); }, path, "has 25 bytes of data, must have 24");
  expect_refused([&] { read_bytes(folder, "\x93NUMPY\x02\x00\xff\xff\xff\xff"s); }, path,
                 "a .npy header of 4294967295");
  expect_refused([&] { read_bytes(folder, file_bytes(std::string(70000, ' '), "", 2)); }, path,
                 "a .npy header of 70000");
  expect_refused([&] { read_bytes(folder, "PK\x03\x04 a zip file"s); }, path, "must be a .npy file");
  expect_refused([&] { read_bytes(folder, file_bytes("{}", "", 4)); }, path, "version 4.0");
  expect_refused([&] { read_bytes(folder, "\x93NUMPY\x01\x01\x02\x00{}"s); }, path, "version 1.1");
  expect_refused([&] { read_bytes(folder, file_bytes(header_of("|b1", "False", "(2,)"), "\x01\x02")); }, path,
                 "the boolean 2");
}

TEST(Npy, RefusesWhatIsNotARegularFile) {
  const TemporaryFolder folder;
  expect_refused([&] { read_npy(folder.path()); }, folder.path(), "is a directory");
  expect_refused([&] { read_npy(folder / "missing"); }, folder / "missing", "No such file");
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  expect_refused([&] { read_npy(folder / "fifo"); }, folder / "fifo", "is a fifo");
  expect_refused([&] { read_npy("/dev/zero"); }, "/dev/zero", "is a device");
}

TEST(Npy, SurvivesRandomDamage) {
  const TemporaryFolder folder;
  const auto read = [&](const std::string& bytes) { to_doubles(read_bytes(folder, bytes)); };
  EXPECT_GT(damage(golden_f32, 3000, 1, read), 0);
  EXPECT_GT(damage(golden_fortran, 3000, 2, read), 0);
}

TEST(Npy, RefusesToWriteDataThatDoNotFitTheShape) {
  const TemporaryFolder folder;
  const std::vector<double> values(5);
  expect_refused([&] { write_npy(folder / "a.npy", from_doubles(values, Shape{6})); }, folder / "a.npy", "40 bytes");
  EXPECT_EQ(folder.entries(), 0u);
}

}  // namespace
}  // namespace allnorm::launch
